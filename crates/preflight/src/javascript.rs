//! What a program in JavaScript or TypeScript shows.

use std::mem::ManuallyDrop;

use oxc_allocator::Allocator;
use oxc_ast::ast::{
    Argument, AssignmentTargetPropertyIdentifier, AssignmentTargetPropertyProperty, BindingProperty, CallExpression,
    ComputedMemberExpression, ExportAllDeclaration, ExportFromDeclaration, Expression, IdentifierReference, ImportDeclaration,
    ImportExpression, ImportSpecifier, PropertyKey, StaticMemberExpression, StringLiteral, TSExternalModuleReference, TemplateElement,
};
use oxc_ast_visit::{Visit, walk};
use oxc_parser::Parser;
use oxc_span::{GetSpan as _, SourceType};
use paddock_crds::FindingKind::{ComputedImport, DynamicCode, NativeCode, Subprocess};

use crate::NoProgram;
use crate::seen::{Seen, Sign};

/// A module of ECMAScript.
pub(crate) const MODULE: SourceType = SourceType::mjs();
/// A module as Node.js had them first.
pub(crate) const COMMON: SourceType = SourceType::cjs();
/// A module of TypeScript.
pub(crate) const TYPED: SourceType = SourceType::ts();
/// The same as Node.js had them first.
pub(crate) const TYPED_COMMON: SourceType = SourceType::ts().with_commonjs(true);

/// Modules whose import is a sign by itself, with all that is in them.
const MODULES: [Sign; 13] = [
    (Subprocess, "child_process"),
    (Subprocess, "cluster"),
    (Subprocess, "execa"),
    (Subprocess, "zx"),
    (DynamicCode, "vm"),
    (DynamicCode, "worker_threads"),
    (DynamicCode, "repl"),
    (DynamicCode, "inspector"),
    (DynamicCode, "v8"),
    (ComputedImport, "module"),
    (NativeCode, "wasi"),
    (NativeCode, "ffi"),
    (NativeCode, "koffi"),
];

/// What is always there.
const GLOBALS: [Sign; 4] = [(DynamicCode, "eval"), (DynamicCode, "Function"), (DynamicCode, "WebAssembly"), (ComputedImport, "require")];

/// Members of any object by which a program gets at what it was not given by name.
const MEMBERS: [Sign; 15] = [
    (DynamicCode, "eval"),
    (DynamicCode, "Function"),
    (DynamicCode, "WebAssembly"),
    (ComputedImport, "require"),
    (ComputedImport, "createRequire"),
    (ComputedImport, "getBuiltinModule"),
    (ComputedImport, "mainModule"),
    (ComputedImport, "_load"),
    (Subprocess, "execve"),
    (DynamicCode, "globalThis"),
    (DynamicCode, "global"),
    // Of a function it is what makes functions of text.
    (DynamicCode, "constructor"),
    (NativeCode, "binding"),
    (NativeCode, "_linkedBinding"),
    (NativeCode, "dlopen"),
];

/// Objects that hold everything: which of their members is meant must be told.
const HOLDERS: [&str; 4] = ["globalThis", "global", "process", "module"];
/// Those of them that are nothing else: given away, any of their members is.
const GLOBAL_OBJECTS: [&str; 2] = ["globalThis", "global"];

/// As each of these kinds of program that the text is: which of them it will run as is told by the name of its file, and a text can be two programs.
pub(crate) fn read(text: &str, kinds: &[SourceType], seen: &mut Seen) -> Result<(), NoProgram> {
    let allocator = ManuallyDrop::new(Allocator::default());
    let (mut first_error, mut is_any) = (None, false);
    for kind in kinds {
        let parsed = ManuallyDrop::new(Parser::new(&allocator, text, *kind).parse());
        let Some(error) = parsed.diagnostics.first() else {
            Reader { seen }.visit_program(&parsed.program);
            is_any = true;
            continue;
        };
        let offset = error.labels.first().map_or(0, |label| usize::try_from(label.offset()).unwrap_or(0));
        first_error.get_or_insert(NoProgram { offset, message: error.message.to_string() });
    }
    first_error.filter(|_| !is_any).map_or(Ok(()), Err)
}

struct Reader<'s> {
    seen: &'s mut Seen,
}

impl Reader<'_> {
    fn import(&mut self, specifier: &str, offset: u32) {
        // Code that is its own name, or comes from somewhere else.
        let scheme = specifier.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        if let Some(scheme) = scheme.filter(|scheme| !matches!(scheme.as_str(), "node" | "file")) {
            self.seen.import(scheme + ":");
            return self.sign((DynamicCode, "import of a URL"), offset);
        }
        self.seen.import(specifier);
        let module = specifier.strip_prefix("node:").unwrap_or(specifier);
        let is_in = |sought: &str| module.strip_prefix(sought).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        for sign in MODULES.iter().filter(|(_, sought)| is_in(sought)) {
            self.sign(sign.clone(), offset);
        }
    }

    fn sign(&mut self, sign: Sign, offset: u32) {
        self.seen.sign(sign, usize::try_from(offset).unwrap_or(usize::MAX));
    }

    fn member(&mut self, name: &str, offset: u32) {
        for sign in MEMBERS.iter().filter(|(_, member)| *member == name) {
            self.sign(sign.clone(), offset);
        }
    }

    /// A member that is taken from an object by its name in a pattern.
    fn taken(&mut self, key: &PropertyKey<'_>) {
        if let Some(name) = key.static_name() {
            self.member(&name, key.span().start);
        }
    }
}

/// The member that an expression names.
fn member_of(expression: &Expression<'_>) -> Option<String> {
    match expression.get_inner_expression() {
        Expression::StaticMemberExpression(member) => Some(member.property.name.to_string()),
        Expression::ComputedMemberExpression(member) => literal(&member.expression),
        _ => None,
    }
}

/// Text without anything that is only known at run time.
fn literal(expression: &Expression<'_>) -> Option<String> {
    match expression.get_inner_expression() {
        Expression::StringLiteral(literal) => Some(literal.value.to_string()),
        Expression::TemplateLiteral(template) if template.expressions.is_empty() => {
            template.quasis.first().and_then(|element| element.value.cooked).map(|text| text.to_string())
        }
        _ => None,
    }
}

fn name_of<'e>(expression: &'e Expression<'_>) -> Option<&'e str> {
    match expression.get_inner_expression() {
        Expression::Identifier(identifier) => Some(identifier.name.as_str()),
        _ => None,
    }
}

/// What a call loads.
enum Loaded {
    Nothing,
    Named(String),
    /// A name that is made at run time.
    Computed,
}

fn loaded(call: &CallExpression<'_>) -> Loaded {
    let is_require = name_of(&call.callee) == Some("require");
    if !is_require && member_of(&call.callee).as_deref() != Some("getBuiltinModule") {
        return Loaded::Nothing;
    }
    call.arguments.first().and_then(Argument::as_expression).and_then(literal).map_or(Loaded::Computed, Loaded::Named)
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_import_declaration(&mut self, it: &ImportDeclaration<'a>) {
        self.import(&it.source.value, it.span.start);
        walk::walk_import_declaration(self, it);
    }

    fn visit_export_all_declaration(&mut self, it: &ExportAllDeclaration<'a>) {
        self.import(&it.source.value, it.span.start);
    }

    fn visit_export_from_declaration(&mut self, it: &ExportFromDeclaration<'a>) {
        self.import(&it.source.value, it.span.start);
    }

    fn visit_ts_external_module_reference(&mut self, it: &TSExternalModuleReference<'a>) {
        self.import(&it.expression.value, it.span.start);
    }

    fn visit_import_specifier(&mut self, it: &ImportSpecifier<'a>) {
        self.member(&it.imported.name(), it.span.start);
    }

    fn visit_import_expression(&mut self, it: &ImportExpression<'a>) {
        match literal(&it.source) {
            Some(specifier) => self.import(&specifier, it.span.start),
            None => self.sign((ComputedImport, "import()"), it.span.start),
        }
        walk::walk_import_expression(self, it);
    }

    fn visit_call_expression(&mut self, it: &CallExpression<'a>) {
        match loaded(it) {
            Loaded::Named(specifier) => {
                self.import(&specifier, it.span.start);
                // What loads is named, so its name is no sign; what it is a member of may be any program.
                match it.callee.get_inner_expression() {
                    Expression::StaticMemberExpression(member) => self.visit_expression(&member.object),
                    Expression::ComputedMemberExpression(member) => self.visit_expression(&member.object),
                    _ => {}
                }
                return self.visit_arguments(&it.arguments);
            }
            Loaded::Computed => self.sign((ComputedImport, "require"), it.span.start),
            Loaded::Nothing => {}
        }
        walk::walk_call_expression(self, it);
    }

    fn visit_binding_property(&mut self, it: &BindingProperty<'a>) {
        self.taken(&it.key);
        walk::walk_binding_property(self, it);
    }

    fn visit_assignment_target_property_identifier(&mut self, it: &AssignmentTargetPropertyIdentifier<'a>) {
        self.member(&it.binding.name, it.span.start);
        walk::walk_assignment_target_property_identifier(self, it);
    }

    fn visit_assignment_target_property_property(&mut self, it: &AssignmentTargetPropertyProperty<'a>) {
        self.taken(&it.name);
        walk::walk_assignment_target_property_property(self, it);
    }

    fn visit_identifier_reference(&mut self, it: &IdentifierReference<'a>) {
        for sign in GLOBALS.iter().filter(|(_, name)| it.name == *name) {
            self.sign(sign.clone(), it.span.start);
        }
        if let Some(holder) = GLOBAL_OBJECTS.iter().find(|holder| it.name == **holder) {
            self.sign((DynamicCode, holder), it.span.start);
        }
    }

    fn visit_static_member_expression(&mut self, it: &StaticMemberExpression<'a>) {
        let name = it.property.name.as_str();
        self.member(name, it.span.start);
        // Its member is named, so the object is no sign.
        let is_harmless = match it.object.get_inner_expression() {
            Expression::Identifier(object) => GLOBAL_OBJECTS.contains(&object.name.as_str()),
            Expression::StaticMemberExpression(object) if name == "name" && object.property.name == "constructor" => {
                return self.visit_expression(&object.object);
            }
            _ => false,
        };
        if !is_harmless {
            walk::walk_static_member_expression(self, it);
        }
    }

    fn visit_computed_member_expression(&mut self, it: &ComputedMemberExpression<'a>) {
        match literal(&it.expression) {
            Some(name) => {
                self.member(&name, it.span.start);
                if name_of(&it.object).is_some_and(|object| GLOBAL_OBJECTS.contains(&object)) {
                    return;
                }
            }
            None => {
                if let Some(holder) = name_of(&it.object).and_then(|object| HOLDERS.iter().find(|holder| **holder == object)) {
                    self.sign((DynamicCode, holder), it.span.start);
                }
            }
        }
        walk::walk_computed_member_expression(self, it);
    }

    fn visit_string_literal(&mut self, it: &StringLiteral<'a>) {
        self.seen.literal(&it.value);
    }

    fn visit_template_element(&mut self, it: &TemplateElement<'a>) {
        self.seen.literal(it.value.cooked.unwrap_or(it.value.raw).as_str());
    }
}
