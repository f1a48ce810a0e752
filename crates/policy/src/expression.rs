//! Expressions of policies, in CEL as Kubernetes uses it. The interpreter has no limit of cost of its own, so what may be written is an allow-list
//! of its syntax tree: what is left takes a bounded number of steps, and none of them is expensive.

use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr};
use cel::parser::PrattParser;
use cel::{Context, Env, ExecutionError, Value};
use regex::RegexBuilder;

use crate::subject::{Subject, fields_of};

/// Longest expression, in characters.
const MAX_LENGTH: usize = 1024;
/// Largest syntax tree, in nodes. A loop is not counted for each turn.
const MAX_NODES: usize = 256;
/// Deepest syntax tree, in nodes: everything that walks it recurses.
const MAX_DEPTH: u16 = 32;
/// Parts of an expression that are inside of loops: each costs as much as the list is long.
const MAX_LOOPED: usize = 48;
/// Longest list that a loop runs over.
pub(crate) const MAX_LIST: usize = 1000;
/// Largest compiled regular expression, in bytes. It is compiled each time that it is used.
const MAX_REGEX: usize = 64 << 10;

/// Everything that may be called beside operators. All of them take time in proportion to their arguments.
const FUNCTIONS: [&str; 21] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "string",
    "timestamp",
    "duration",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "@in",
    "@not_strictly_false",
];
const OPERATORS: [&str; 17] =
    ["_?_:_", "_&&_", "_||_", "!_", "_-_", "_+_", "_*_", "_/_", "_%_", "_==_", "_!=_", "_>=_", "_<=_", "_>_", "_<_", "-_", "_[_]"];

/// An expression that may be evaluated.
#[derive(Clone, Debug)]
pub struct Expression {
    source: String,
    tree: Arc<IdedExpr>,
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// What an expression is evaluated on.
pub(crate) type Variables = Context<'static, 'static>;

/// Made once: it knows every function.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

impl Expression {
    /// Compiles.
    ///
    /// # Errors
    /// In words for the author of the policy: what is wrong with the syntax, or what may not be written.
    pub fn compile(source: &str) -> Result<Self, String> {
        if source.len() > MAX_LENGTH {
            return Err(format!("it has {} bytes; at most {MAX_LENGTH} are allowed", source.len()));
        }
        let parser = PrattParser::new().max_recursion_depth(MAX_DEPTH).max_expression_node_count(MAX_NODES);
        let tree = parser.parse(source).map_err(|errors| first_line(&errors.to_string()))?;
        let mut checking = Checking { nodes: 0, looped: 0, depth: 0, bound: Vec::new() };
        checking.node(&tree)?;
        Ok(Self { source: source.to_owned(), tree: Arc::new(tree) })
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// In words: a key that is not there, a comparison of what cannot be compared, or something else than true and false.
    pub(crate) fn holds(&self, variables: &Variables) -> Result<bool, String> {
        match variables.resolve(&self.tree) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err("it is neither true nor false".into()),
            Err(error) => Err(self.told(&error)),
        }
    }
}

/// The variables of a subject.
///
/// # Errors
/// A list is longer than any loop may be.
pub(crate) fn variables(subject: &Subject<'_>) -> Result<Variables, String> {
    if let Some(what) = subject.longest().filter(|(_, length)| *length > MAX_LIST).map(|(what, _)| what) {
        return Err(format!("{what} has more than {MAX_LIST} entries"));
    }
    let mut context = Context::with_env(ENV.clone());
    let unfit = |error: cel::SerializationError| error.to_string();
    for (name, value) in subject.values().map_err(unfit)? {
        context.add_variable_from_value(name, value);
    }
    Ok(context)
}

impl Expression {
    /// Values of a run do not belong into what the author of a policy reads, nor text of its author into a condition: a key is told if it stands in
    /// the expression.
    fn told(&self, error: &ExecutionError) -> String {
        match error {
            ExecutionError::NoSuchKey(key) if self.source.contains(key.as_str()) => format!("there is no {key}"),
            ExecutionError::NoSuchKey(_) => "there is no such key".into(),
            other => told(other),
        }
    }
}

fn told(error: &ExecutionError) -> String {
    match error {
        ExecutionError::UndeclaredReference(name) => format!("{name} is not known"),
        ExecutionError::NoSuchOverload(overload) => format!("{} does not take values of these kinds", overload.function()),
        ExecutionError::ValuesNotComparable(..) => "it compares what cannot be compared".into(),
        ExecutionError::IndexOutOfBounds(_) => "a list has no such entry".into(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "it divides by zero".into(),
        ExecutionError::Overflow(..) => "a number is too large".into(),
        _ => "it cannot be evaluated on this run".into(),
    }
}

fn first_line(text: &str) -> String {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it is no expression").trim().chars().take(200).collect()
}

struct Checking {
    nodes: usize,
    looped: usize,
    depth: u16,
    /// Variables of the loops around.
    bound: Vec<String>,
}

impl Checking {
    fn node(&mut self, node: &IdedExpr) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("it has more than {MAX_NODES} parts"));
        }
        self.looped += usize::from(!self.bound.is_empty());
        if self.looped > MAX_LOOPED {
            return Err(format!("it has more than {MAX_LOOPED} parts in loops"));
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is deeper than {MAX_DEPTH} parts: more brackets, or fewer parts in a row"));
        }
        let checked = self.inside(node);
        self.depth -= 1;
        checked
    }

    fn inside(&mut self, node: &IdedExpr) -> Result<(), String> {
        match &node.expr {
            Expr::Literal(_) | Expr::Unspecified => Ok(()),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.node(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => self.node(&entry.key).and_then(|()| self.node(&entry.value)),
                EntryExpr::StructField(field) => self.node(&field.value),
            }),
            Expr::Struct(_) => Err("messages cannot be made".into()),
        }
    }

    fn ident(&self, name: &str) -> Result<(), String> {
        if fields_of(name).is_some() || self.bound.iter().any(|bound| bound == name) {
            return Ok(());
        }
        Err(format!("{name} is not known: there are run, tenant, requester, endUser, risk and now"))
    }

    fn select(&mut self, select: &SelectExpr) -> Result<(), String> {
        if let Expr::Ident(name) = &select.operand.expr
            && !self.bound.iter().any(|bound| bound == name)
            && let Some(fields) = fields_of(name)
            && !fields.contains(&select.field.as_str())
        {
            return Err(format!("{name} has no {}; it has {}", select.field, fields.join(", ")));
        }
        self.node(&select.operand)
    }

    fn call(&mut self, call: &CallExpr) -> Result<(), String> {
        let name = call.func_name.as_str();
        if !OPERATORS.contains(&name) && !FUNCTIONS.contains(&name) {
            return Err(format!("{name} may not be used"));
        }
        if name == "matches" {
            self.regex(call)?;
        }
        self.lists(call)?;
        if name.starts_with("get") {
            call.args.iter().try_for_each(zone)?;
        }
        call.target.iter().try_for_each(|target| self.node(target))?;
        call.args.iter().try_for_each(|argument| self.node(argument))
    }

    /// Lists and maps grow by `+`, and take as long to look through or to compare as they are long. What kind a value is of is not known before it is
    /// evaluated, so one operand must be something that can only be a single value: with a list, the other kind is then an error.
    fn lists(&self, call: &CallExpr) -> Result<(), String> {
        let has_a_single = || call.args.iter().chain(call.target.as_deref()).any(|operand| self.is_single(operand));
        match call.func_name.as_str() {
            "_+_" if !has_a_single() => {
                Err("one side of + must be written out, or be string(…), int(…), a sum or a variable of a loop: lists cannot be added"
                    .into())
            }
            "@in" if !self.bound.is_empty() => Err("in cannot be used in a loop".into()),
            "_==_" | "_!=_" if !self.bound.is_empty() && !has_a_single() => {
                Err("lists cannot be compared in a loop: one side of == must be written out, or be the variable of the loop".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether it can be neither a list nor a map. The lists of a loop hold strings, and what is written out in them.
    fn is_single(&self, node: &IdedExpr) -> bool {
        const SINGLE: [&str; 9] = ["string", "int", "size", "timestamp", "duration", "_-_", "_*_", "_/_", "_%_"];
        match &node.expr {
            Expr::Literal(_) => true,
            Expr::Ident(name) => self.bound.iter().any(|bound| bound == name),
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                // A sum is checked by itself.
                SINGLE.contains(&name) || name == "_+_" || name.starts_with("get")
            }
            _ => false,
        }
    }

    /// It is compiled each time, so it must be known, small, and in no loop.
    fn regex(&self, call: &CallExpr) -> Result<(), String> {
        let Some(IdedExpr { expr: Expr::Literal(LiteralValue::String(pattern)), .. }) = call.args.last() else {
            return Err("the pattern of matches must be written out".into());
        };
        if !self.bound.is_empty() {
            return Err("matches cannot be used in a loop; startsWith, endsWith and contains can".into());
        }
        let built = RegexBuilder::new(pattern.inner()).size_limit(MAX_REGEX).build();
        built.map(drop).map_err(|error| format!("the pattern cannot be used: {}", first_line(&error.to_string())))
    }

    /// `all`, `exists` and `exists_one`. Those that make lists could make long ones.
    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Result<(), String> {
        if !self.bound.is_empty() {
            return Err("a loop cannot be in another".into());
        }
        if comprehension.iter_var2.is_some() {
            return Err("a loop has one variable".into());
        }
        if matches!(comprehension.accu_init.expr, Expr::List(_) | Expr::Map(_)) {
            return Err("map and filter cannot be used; all, exists and exists_one can".into());
        }
        if !is_a_list_at_hand(&comprehension.iter_range) {
            return Err("a loop runs over a field, as requester.groups, or a list that is written out".into());
        }
        self.node(&comprehension.iter_range)?;
        self.node(&comprehension.accu_init)?;
        self.bound.push(comprehension.accu_var.clone());
        self.bound.push(comprehension.iter_var.clone());
        for part in [&comprehension.loop_cond, &comprehension.loop_step, &comprehension.result] {
            self.node(part)?;
        }
        self.bound.clear();
        Ok(())
    }
}

/// A field of a variable, or literals.
fn is_a_list_at_hand(node: &IdedExpr) -> bool {
    match &node.expr {
        Expr::Ident(_) => true,
        Expr::Select(select) => !select.test && is_a_list_at_hand(&select.operand),
        Expr::List(list) => list.elements.iter().all(|element| matches!(element.expr, Expr::Literal(_))),
        _ => false,
    }
}

/// A time zone must be written out, so that a wrong one is found before any run.
fn zone(argument: &IdedExpr) -> Result<(), String> {
    let Expr::Literal(LiteralValue::String(zone)) = &argument.expr else {
        return Err("a time zone must be written out, as 'Europe/Berlin'".into());
    };
    zone.inner().parse::<chrono_tz::Tz>().map(drop).map_err(|_| format!("there is no time zone {}", zone.inner()))
}

#[cfg(test)]
mod tests;
