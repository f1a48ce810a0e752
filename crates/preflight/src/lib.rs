//! What the text of a script shows before it runs: what it imports, which hosts it names, and whether it makes code at run time or starts other
//! programs.
//!
//! Nothing here says that a script is safe. The text is read and never run; what a program will do cannot be known from it, and whoever wants to hide
//! something can. It tells authors of mistakes, and approvers what they should look at. What holds a script is its sandbox.
//!
//! Parsers are large, and recurse. So they read in a process of their own ([`ask`]), and what they break there is [`Unclear::TooCostly`].

mod gate;
mod hosts;
mod javascript;
mod python;
mod seen;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use paddock_confined::{Answered, Bounds};
use paddock_crds::{Language, Preflight, Unclear};
use serde::{Deserialize, Serialize};

use crate::seen::Seen;

/// What reading one script may take.
pub const BOUNDS: Bounds = Bounds {
    argument: "read-script",
    cpu_seconds: 1,
    memory: 128 << 20,
    stack: 32 << 20,
    wall: Duration::from_secs(30),
    // A script has at most 64 KiB, and a byte takes up to four characters as JSON.
    question: 512 << 10,
    answer: 256 << 10,
};

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// As what.
    pub language: Language,
    /// Exactly the bytes that will run.
    pub script: Vec<u8>,
}

/// What a process of its own read, and how it ended if the script broke it. What it says is no more to be trusted than the script.
///
/// # Errors
/// The process could not be had, or had no chance to answer.
pub async fn ask(question: &Question) -> io::Result<(Preflight, Option<String>)> {
    let how = match paddock_confined::ask::<Preflight>(&BOUNDS, question).await? {
        Answered::Yes(seen) if seen.language == Some(question.language) && seen.fits() => return Ok((seen, None)),
        Answered::Yes(_) => "an answer of another form".to_owned(),
        Answered::Broke(how) => how,
    };
    let message = "reading it takes more than a second of CPU, or too much memory or depth";
    Ok((Preflight::unclear(Some(question.language), Unclear::TooCostly, message), Some(how)))
}

/// The process that reads.
pub fn serve() -> ExitCode {
    paddock_confined::serve(&BOUNDS, || (), |question: Question| examine(question.language, &question.script))
}

/// Reads. The syntax tree is not freed: it is as deep as the script likes, and freeing it recurses. So this is for a process that ends with it.
pub fn examine(language: Language, script: &[u8]) -> Preflight {
    let unclear = |(why, message): (Unclear, String)| Preflight::unclear(Some(language), why, message);
    let text = match gate::text(language, script) {
        Ok(text) => text,
        Err(why) => return unclear(why),
    };
    let mut seen = Seen::default();
    let read = match language {
        Language::Python => python::read(text, &mut seen),
        Language::JavaScript => javascript::read(text, &[javascript::MODULE, javascript::COMMON], &mut seen),
        Language::TypeScript => javascript::read(text, &[javascript::TYPED, javascript::TYPED_COMMON], &mut seen),
    };
    read.map_err(|error| (Unclear::SyntaxError, error.told(text))).and_then(|()| seen.told(language, text)).unwrap_or_else(unclear)
}

/// Where a text is no program, and why not.
struct NoProgram {
    offset: usize,
    message: String,
}

impl NoProgram {
    fn told(&self, text: &str) -> String {
        let before = text.get(..self.offset).unwrap_or(text);
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let message: String = self.message.chars().map(|char| if char.is_control() { ' ' } else { char }).take(300).collect();
        format!("line {}, column {column}: {message}", seen::line_of(text, self.offset))
    }
}

#[cfg(test)]
mod tests;
