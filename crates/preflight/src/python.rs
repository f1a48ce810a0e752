//! What a program in Python shows.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;

use paddock_crds::FindingKind::{ComputedImport, DynamicCode, NativeCode, Subprocess};
use ruff_python_ast::visitor::{self, Visitor};
use ruff_python_ast::{Expr, ExprCall, InterpolatedStringElement, Stmt, StmtImport, StmtImportFrom};
use ruff_text_size::{Ranged as _, TextSize};

use crate::NoProgram;
use crate::seen::{Seen, Sign};

/// Modules whose import is a sign by itself, with all that is in them.
const MODULES: [Sign; 34] = [
    (Subprocess, "subprocess"),
    (Subprocess, "_posixsubprocess"),
    (Subprocess, "multiprocessing"),
    (Subprocess, "_multiprocessing"),
    (Subprocess, "concurrent.futures.process"),
    (Subprocess, "asyncio.subprocess"),
    (Subprocess, "pty"),
    (NativeCode, "ctypes"),
    (NativeCode, "_ctypes"),
    (NativeCode, "cffi"),
    (NativeCode, "_cffi_backend"),
    (DynamicCode, "code"),
    (DynamicCode, "codeop"),
    (DynamicCode, "runpy"),
    (DynamicCode, "marshal"),
    (DynamicCode, "pickle"),
    (DynamicCode, "_pickle"),
    (DynamicCode, "shelve"),
    (DynamicCode, "dill"),
    (DynamicCode, "cloudpickle"),
    (DynamicCode, "builtins"),
    (DynamicCode, "pdb"),
    (DynamicCode, "bdb"),
    (DynamicCode, "doctest"),
    (DynamicCode, "trace"),
    (DynamicCode, "_interpreters"),
    (DynamicCode, "_xxsubinterpreters"),
    (ComputedImport, "_frozen_importlib"),
    (ComputedImport, "_frozen_importlib_external"),
    (ComputedImport, "_imp"),
    (ComputedImport, "pydoc"),
    (ComputedImport, "imp"),
    (ComputedImport, "pkgutil"),
    (ComputedImport, "zipimport"),
];

/// What is in modules that are harmless otherwise.
const MEMBERS: [Sign; 38] = [
    (Subprocess, "os.system"),
    (Subprocess, "os.popen"),
    (Subprocess, "os.fork"),
    (Subprocess, "os.forkpty"),
    (Subprocess, "os.posix_spawn"),
    (Subprocess, "os.posix_spawnp"),
    (Subprocess, "os.execv"),
    (Subprocess, "os.execve"),
    (Subprocess, "os.execvp"),
    (Subprocess, "os.execvpe"),
    (Subprocess, "os.execl"),
    (Subprocess, "os.execle"),
    (Subprocess, "os.execlp"),
    (Subprocess, "os.execlpe"),
    (Subprocess, "os.spawnv"),
    (Subprocess, "os.spawnve"),
    (Subprocess, "os.spawnvp"),
    (Subprocess, "os.spawnvpe"),
    (Subprocess, "os.spawnl"),
    (Subprocess, "os.spawnle"),
    (Subprocess, "os.spawnlp"),
    (Subprocess, "os.spawnlpe"),
    (Subprocess, "concurrent.futures.ProcessPoolExecutor"),
    (Subprocess, "asyncio.create_subprocess_exec"),
    (Subprocess, "asyncio.create_subprocess_shell"),
    (DynamicCode, "types.FunctionType"),
    (DynamicCode, "types.CodeType"),
    (DynamicCode, "operator.attrgetter"),
    (DynamicCode, "operator.methodcaller"),
    (DynamicCode, "typing.get_type_hints"),
    (DynamicCode, "timeit.timeit"),
    (DynamicCode, "timeit.repeat"),
    (DynamicCode, "timeit.Timer"),
    (DynamicCode, "cProfile.run"),
    (DynamicCode, "cProfile.runctx"),
    (DynamicCode, "profile.run"),
    (DynamicCode, "profile.runctx"),
    (ComputedImport, "sys.modules"),
];

/// What is always there.
const BUILTINS: [Sign; 10] = [
    (DynamicCode, "eval"),
    (DynamicCode, "exec"),
    (DynamicCode, "compile"),
    (DynamicCode, "globals"),
    (DynamicCode, "locals"),
    (DynamicCode, "vars"),
    (ComputedImport, "__import__"),
    (DynamicCode, "__builtins__"),
    (DynamicCode, "__loader__"),
    (DynamicCode, "__spec__"),
];

/// Attributes of any object by which a program gets at what it was not given by name.
const ATTRIBUTES: [Sign; 28] = [
    (DynamicCode, "__globals__"),
    (DynamicCode, "__builtins__"),
    (DynamicCode, "__subclasses__"),
    (DynamicCode, "__code__"),
    (DynamicCode, "__dict__"),
    (DynamicCode, "__self__"),
    (DynamicCode, "eval"),
    (DynamicCode, "exec"),
    (ComputedImport, "__import__"),
    (ComputedImport, "import_module"),
    (Subprocess, "subprocess_exec"),
    (Subprocess, "subprocess_shell"),
    (DynamicCode, "__base__"),
    (DynamicCode, "__bases__"),
    (DynamicCode, "__mro__"),
    (DynamicCode, "__getattribute__"),
    (DynamicCode, "__reduce__"),
    (DynamicCode, "__reduce_ex__"),
    (DynamicCode, "__loader__"),
    (DynamicCode, "__spec__"),
    (DynamicCode, "f_globals"),
    (DynamicCode, "f_locals"),
    (DynamicCode, "f_builtins"),
    (DynamicCode, "f_back"),
    (DynamicCode, "gi_frame"),
    (DynamicCode, "cr_frame"),
    (DynamicCode, "ag_frame"),
    (DynamicCode, "tb_frame"),
];

/// Members of a path that is spelled out, at most.
const DEEPEST: usize = 16;

/// Functions that reach an attribute by its name.
const GETTERS: [&str; 3] = ["getattr", "setattr", "delattr"];

/// Parts of `importlib` that import nothing by a name that is made at run time.
const HARMLESS: [&str; 2] = ["importlib.metadata", "importlib.resources"];

pub(crate) fn read(text: &str, seen: &mut Seen) -> Result<(), NoProgram> {
    let parsed = ruff_python_parser::parse_module(text)
        .map_err(|error| NoProgram { offset: error.location.start().to_usize(), message: error.error.to_string() })?;
    let parsed = ManuallyDrop::new(parsed);
    let mut names = Names::default();
    names.visit_body(&parsed.syntax().body);
    let mut reader = Reader { names: names.0, seen };
    reader.visit_body(&parsed.syntax().body);
    Ok(())
}

/// What names stand for that imports bind, wherever they do: what is bound twice stands for both.
#[derive(Default)]
struct Names(BTreeMap<String, BTreeSet<String>>);

impl Names {
    fn bind(&mut self, name: &str, path: String) {
        self.0.entry(name.to_owned()).or_default().insert(path);
    }
}

impl Visitor<'_> for Names {
    fn visit_stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Import(StmtImport { names, .. }) => {
                for alias in names {
                    let first = alias.name.split('.').next().unwrap_or_default();
                    let (bound, module) = alias.asname.as_ref().map_or((first, first), |bound| (bound.as_str(), alias.name.as_str()));
                    self.bind(bound, module.to_owned());
                }
            }
            Stmt::ImportFrom(from) => {
                for alias in &from.names {
                    let bound = alias.asname.as_ref().unwrap_or(&alias.name);
                    self.bind(bound, format!("{}.{}", origin(from), alias.name));
                }
            }
            _ => visitor::walk_stmt(self, stmt),
        }
    }

    fn visit_expr(&mut self, _: &Expr) {}
}

fn origin(from: &StmtImportFrom) -> String {
    let dots = ".".repeat(usize::try_from(from.level).unwrap_or(usize::MAX).min(8));
    dots + from.module.as_ref().map_or("", |module| module.as_str())
}

struct Reader<'a> {
    names: BTreeMap<String, BTreeSet<String>>,
    seen: &'a mut Seen,
}

impl Reader<'_> {
    fn import(&mut self, module: &str, offset: TextSize) {
        self.seen.import(module);
        if let Some(module) = of_os(module) {
            self.seen.import(module);
        }
        self.path(module, offset);
    }

    /// A module, or what is in one, under the name that it was imported by.
    fn path(&mut self, path: &str, offset: TextSize) {
        let offset = offset.to_usize();
        let path = of_os(path).unwrap_or_else(|| path.to_owned());
        let modules = MODULES.iter().filter(|(_, module)| is_in(&path, module));
        let members = MEMBERS.iter().filter(|(_, member)| is_in(&path, member));
        for sign in modules.chain(members) {
            self.seen.sign(sign.clone(), offset);
        }
        let is_harmless = path == "importlib" || HARMLESS.iter().any(|harmless| is_in(&path, harmless));
        if is_in(&path, "importlib") && !is_harmless {
            self.seen.sign((ComputedImport, "importlib"), offset);
        }
    }

    /// All names of a module, none of which is seen where it is used: one of each kind is told.
    fn everything_of(&mut self, module: &str, offset: TextSize) {
        let mut kinds = Vec::new();
        let module = of_os(module).unwrap_or_else(|| module.to_owned());
        if module == "importlib" {
            self.seen.sign((ComputedImport, "importlib"), offset.to_usize());
        }
        for sign in MEMBERS.iter().filter(|(_, member)| is_in(member, &module)) {
            if !kinds.contains(&&sign.0) {
                kinds.push(&sign.0);
                self.seen.sign(sign.clone(), offset.to_usize());
            }
        }
    }

    /// The dotted paths that an expression may spell out from a name that imports have bound.
    fn resolved(&self, expr: &Expr) -> Vec<String> {
        let mut members = Vec::new();
        let mut inner = expr;
        while let Expr::Attribute(attribute) = inner {
            members.push(attribute.attr.as_str());
            inner = &attribute.value;
            // Nothing that is looked for is so deep, and what is inside is looked at by itself.
            if members.len() > DEEPEST {
                return Vec::new();
            }
        }
        let spelled = |start: &String| members.iter().rev().fold(start.clone(), |path, member| path + "." + member);
        match inner {
            Expr::Name(name) => self.names.get(name.id.as_str()).into_iter().flatten().map(spelled).collect(),
            Expr::Call(call) => self.imported_by(call).iter().map(spelled).collect(),
            _ => Vec::new(),
        }
    }

    /// Functions that get something by a name: harmless where that name stands there.
    fn call(&mut self, call: &ExprCall) {
        let offset = call.start().to_usize();
        let argument = |index: usize| call.arguments.args.get(index);
        let is_starred = call.arguments.args.iter().take(2).any(|argument| matches!(argument, Expr::Starred(_)));
        let literal = |index: usize| match argument(index) {
            Some(Expr::StringLiteral(literal)) if !is_starred => Some(literal.value.to_str()),
            _ => None,
        };
        if let Expr::Name(name) = &*call.func {
            match name.id.as_str() {
                name if GETTERS.contains(&name) => match literal(1) {
                    Some(name) => {
                        self.attribute(name, call.start());
                        for path in argument(0).map(|object| self.resolved(object)).unwrap_or_default() {
                            self.path(&format!("{path}.{name}"), call.start());
                        }
                    }
                    None => self.seen.sign((DynamicCode, "getattr"), offset),
                },
                "type" if argument(2).is_some() => self.seen.sign((DynamicCode, "type"), offset),
                _ => {}
            }
        }
    }

    /// A name that is always there, whatever else an import may have bound to it elsewhere.
    fn builtin(&mut self, name: &str, offset: TextSize) {
        for sign in BUILTINS.iter().filter(|(_, builtin)| *builtin == name) {
            self.seen.sign(sign.clone(), offset.to_usize());
        }
        // Given away, it is called with any name.
        if GETTERS.contains(&name) {
            self.seen.sign((DynamicCode, "getattr"), offset.to_usize());
        }
    }

    fn attribute(&mut self, name: &str, offset: TextSize) {
        for sign in ATTRIBUTES.iter().filter(|(_, attribute)| *attribute == name) {
            self.seen.sign(sign.clone(), offset.to_usize());
        }
    }

    /// The module that a call imports, if it names it: then the function itself is no sign.
    fn imported_by(&self, call: &ExprCall) -> Option<String> {
        let is_import = match &*call.func {
            Expr::Name(name) => name.id.as_str() == "__import__" || self.is_import_module(&call.func),
            func => self.is_import_module(func),
        };
        let arguments = &call.arguments;
        match (is_import, arguments.args.first(), arguments.args.len() + arguments.keywords.len()) {
            (true, Some(Expr::StringLiteral(literal)), 1) => Some(literal.value.to_str().to_owned()),
            _ => None,
        }
    }

    fn is_import_module(&self, func: &Expr) -> bool {
        matches!(func, Expr::Name(_) | Expr::Attribute(_)) && self.resolved(func) == ["importlib.import_module"]
    }
}

/// The same in `os`, of what is in the module that it is made of.
fn of_os(path: &str) -> Option<String> {
    path.strip_prefix("posix").filter(|rest| rest.is_empty() || rest.starts_with('.')).map(|rest| format!("os{rest}"))
}

/// A path is what is looked for, or in it.
fn is_in(path: &str, sought: &str) -> bool {
    path.strip_prefix(sought).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl<'a> Visitor<'a> for Reader<'_> {
    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        match stmt {
            Stmt::Import(StmtImport { names, .. }) => {
                for alias in names {
                    self.import(&alias.name, alias.start());
                    // `import a.b` binds `a`, with all that is in it.
                    if let (None, Some((first, _))) = (&alias.asname, alias.name.split_once('.')) {
                        self.import(first, alias.start());
                    }
                }
            }
            Stmt::ImportFrom(from) => {
                for alias in &from.names {
                    let origin = origin(from);
                    if alias.name.as_str() == "*" {
                        self.everything_of(&origin, alias.start());
                        self.import(&origin, alias.start());
                    } else {
                        self.import(&format!("{origin}.{}", alias.name), alias.start());
                    }
                }
            }
            _ => visitor::walk_stmt(self, stmt),
        }
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Name(_) | Expr::Attribute(_) => {
                match expr {
                    Expr::Name(name) => self.builtin(name.id.as_str(), name.start()),
                    Expr::Attribute(attribute) => self.attribute(&attribute.attr, attribute.attr.start()),
                    _ => {}
                }
                for path in self.resolved(expr) {
                    self.path(&path, expr.start());
                }
            }
            Expr::Call(call) => {
                self.call(call);
                if let Some(module) = self.imported_by(call) {
                    self.import(&module, call.start());
                    // What the function is a member of may be imported in the same way.
                    if let Expr::Attribute(function) = &*call.func {
                        self.visit_expr(&function.value);
                    }
                    return;
                }
                // Called with a name that stands there, it is no sign.
                if matches!(&*call.func, Expr::Name(name) if GETTERS.contains(&name.id.as_str())) {
                    return self.visit_arguments(&call.arguments);
                }
            }
            Expr::StringLiteral(literal) => self.seen.literal(literal.value.to_str()),
            Expr::BytesLiteral(literal) => {
                let bytes: Vec<u8> = literal.value.bytes().collect();
                self.seen.literal(&String::from_utf8_lossy(&bytes));
            }
            _ => {}
        }
        visitor::walk_expr(self, expr);
    }

    fn visit_interpolated_string_element(&mut self, element: &'a InterpolatedStringElement) {
        if let InterpolatedStringElement::Literal(literal) = element {
            self.seen.literal(&literal.value);
        }
        visitor::walk_interpolated_string_element(self, element);
    }
}

/// Names of attributes that are looked for.
#[cfg(test)]
pub(crate) fn signs() -> impl Iterator<Item = &'static str> {
    ATTRIBUTES.iter().map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use paddock_crds::FindingKind;

    use super::*;

    #[test]
    fn every_sign_has_a_name_that_can_be_told() {
        let all = MODULES.iter().chain(&MEMBERS).chain(&BUILTINS).chain(&ATTRIBUTES);
        assert!(all.clone().all(|(kind, name)| name.len() <= 64 && !matches!(kind, FindingKind::Unknown(_))));
    }
}
