//! Texts that are made to break who reads them, read by a process of its own. This program is that process too, so it has a `main` of its own.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use paddock_crds::{Language, PreflightVerdict, Unclear};
use paddock_preflight::{BOUNDS, Question, ask, serve};

/// Of a script.
const MOST: usize = 64 << 10;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(BOUNDS.argument) {
        return serve();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_or(ExitCode::FAILURE, |runtime| runtime.block_on(all()))
}

/// As often as there is room for, between two ends.
fn repeated(start: &str, part: &str, end: &str) -> String {
    start.to_owned() + &part.repeat((MOST - start.len() - end.len()) / part.len()) + end
}

fn nested(open: &str, inner: &str, close: &str) -> String {
    let depth = (MOST - inner.len()) / (open.len() + close.len());
    open.repeat(depth) + inner + &close.repeat(depth)
}

fn texts() -> Vec<(Language, &'static str, String)> {
    let shared = [
        ("parentheses", nested("(", "1", ")")),
        ("parentheses that are not closed", repeated("", "(", "")),
        ("lists", nested("[", "", "]")),
        ("sums", repeated("x = 1", "+1", "")),
        ("members", repeated("x", ".a", "")),
        ("calls", repeated("x", "()", "")),
        ("subscripts", repeated("x", "[0]", "")),
        ("signs", repeated("x = ", "- ", "1")),
        ("strings", repeated("", "'a'\n", "")),
        ("quotes that are not closed", repeated("", "'", "")),
    ];
    let python = [
        ("blocks", (0..350).map(|depth| " ".repeat(depth) + "if x:\n").collect::<String>() + &" ".repeat(350) + "pass"),
        ("lambdas", repeated("x = ", "lambda: ", "1")),
        ("formatted strings", repeated("x = ", "f'{", "")),
        ("decorators", repeated("", "@a\n", "def f(): pass")),
        ("alternatives", repeated("if x: pass\n", "elif x: pass\n", "")),
        ("powers", repeated("x = 1", "**1", "")),
        ("imports", repeated("", "import a\n", "")),
        ("large number", repeated("x = ", "9", "")),
        ("indents", repeated("", "\t", "")),
    ];
    let javascript = [
        ("blocks", nested("{", "", "}")),
        ("functions", nested("(function(){", "", "})()")),
        ("arrows", repeated("x = ", "a=>", "1")),
        ("templates", nested("`${", "1", "}`")),
        ("classes", nested("class A{static{", "", "}}")),
        ("labels", repeated("", "a:", ";")),
        ("alternatives", repeated("", "if(x);else ", ";")),
        ("regular expressions", nested("/", "((((((a*)*)*)*)*)*", "/;")),
        ("comments", repeated("", "/*", "")),
    ];
    let typescript = [("types", nested("let a:{b:", "1", "}")), ("generics", nested("let a:A<", "1", ">"))];
    let all = [Language::Python, Language::JavaScript, Language::TypeScript];
    let of = |language, texts: Vec<(&'static str, String)>| texts.into_iter().map(move |(name, text)| (language, name, text));
    let mut texts: Vec<_> = all.into_iter().flat_map(|language| of(language, shared.to_vec())).collect();
    texts.extend(of(Language::Python, python.to_vec()));
    texts.extend(of(Language::JavaScript, javascript.to_vec()));
    texts.extend(of(Language::TypeScript, typescript.to_vec()));
    texts
}

/// Whether a text came to what it must, whatever a build makes of the depth of its stack.
fn is_expected(name: &str, unclear: Option<&Unclear>) -> bool {
    match name {
        "parentheses" | "parentheses that are not closed" => unclear == Some(&Unclear::TooCostly),
        "quotes that are not closed" => unclear == Some(&Unclear::SyntaxError),
        "strings" | "imports" | "labels" | "types" => unclear.is_none(),
        _ => true,
    }
}

async fn all() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (language, name, text) in texts() {
        let started = Instant::now();
        let seen = ask(&Question { language, script: text.into_bytes() }).await;
        let took = started.elapsed();
        let is_told = seen.as_ref().is_ok_and(|(seen, how)| {
            let is_read = seen.verdict == PreflightVerdict::NoFindings && seen.unclear.is_none();
            let is_unclear = matches!(seen.unclear, Some(Unclear::SyntaxError | Unclear::TooCostly | Unclear::TooMuch));
            let is_broken = how.is_some() == (seen.unclear == Some(Unclear::TooCostly));
            (is_read || is_unclear) && is_broken && is_expected(name, seen.unclear.as_ref())
        });
        println!("test {language:?}: {name} ... {}: {seen:?} in {} ms", if is_told { "ok" } else { "FAILED" }, took.as_millis());
        if !is_told || took > Duration::from_secs(25) {
            code = ExitCode::FAILURE;
        }
    }
    code
}
