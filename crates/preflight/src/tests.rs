use std::fmt::Write as _;

use paddock_crds::{Preflight, PreflightVerdict};
use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// `import a; host b; 3 Kind what`, as the examination tells it.
fn told(seen: &Preflight) -> String {
    let mut told = String::new();
    if let Some(why) = &seen.unclear {
        return format!("{why}: {}", seen.message.as_deref().unwrap_or_default());
    }
    for module in &seen.imports {
        let _ = write!(told, "import {module}; ");
    }
    for host in &seen.hosts {
        let _ = write!(told, "host {host}; ");
    }
    for finding in &seen.findings {
        let _ = write!(told, "{} {} {}; ", finding.line, finding.kind, finding.what);
    }
    told.trim_end_matches("; ").to_owned()
}

fn python(text: &str) -> String {
    told(&examine(Language::Python, text.as_bytes()))
}

fn javascript(text: &str) -> String {
    told(&examine(Language::JavaScript, text.as_bytes()))
}

#[rstest]
#[case::nothing("print('hello')", "")]
#[case::imports(
    "import json, os.path as p\nfrom datetime import datetime\nfrom x import *",
    "import datetime.datetime; import json; import os.path; import x"
)]
#[case::harmless_os("import os\nprint(os.path.join('a', 'b'), os.environ)", "import os")]
#[case::urls("u = 'https://api.example.com/v1'\nv = f'http://b.example/{u}'", "host api.example.com; host b.example")]
#[case::concatenated("'https://' 'api.example.com/'", "host api.example.com")]
#[case::subprocess("import subprocess\nsubprocess.run(['id'])", "import subprocess; 1 Subprocess subprocess")]
#[case::subprocess_by_another_name("from subprocess import run as r\nr(['id'])", "import subprocess.run; 1 Subprocess subprocess")]
#[case::os_system("import os\n\nos.system('id')", "import os; 3 Subprocess os.system")]
#[case::os_system_by_another_name("import os as o\no.system('id')", "import os; 2 Subprocess os.system")]
#[case::os_system_imported("from os import system as s", "import os.system; 1 Subprocess os.system")]
#[case::posix("from posix import system", "import os.system; import posix.system; 1 Subprocess os.system")]
#[case::before_its_import("def f():\n  os.fork()\nimport os", "import os; 2 Subprocess os.fork")]
#[case::processes(
    "from concurrent.futures import ProcessPoolExecutor",
    "import concurrent.futures.ProcessPoolExecutor; 1 Subprocess concurrent.futures.ProcessPoolExecutor"
)]
#[case::ctypes("import ctypes", "import ctypes; 1 NativeCode ctypes")]
#[case::pickle("import pickle", "import pickle; 1 DynamicCode pickle")]
#[case::regex_compile("import re\nre.compile('a')", "import re")]
#[case::metadata("import importlib.metadata as m\nm.version('x')", "import importlib.metadata")]
fn what_a_program_in_python_shows(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(python(text), expected);
}

/// Ways around a look at the text that are known, and what is seen of each.
#[rstest]
#[case::eval("eval('1')", "1 DynamicCode eval")]
#[case::eval_by_another_name("e = eval\ne('1')", "1 DynamicCode eval")]
#[case::mathematical_letters("\u{1d4ee}\u{1d4ff}\u{1d4ea}\u{1d4f5}('1')", "1 DynamicCode eval")]
#[case::compiled(
    "import base64\nexec(compile(base64.b64decode(b'eA=='), 'x', 'exec'))",
    "import base64; 2 DynamicCode exec; 2 DynamicCode compile"
)]
#[case::computed_attribute("import os\ngetattr(os, 'sys' + 'tem')('id')", "import os; 2 DynamicCode getattr")]
#[case::named_attribute("getattr(x, 'name')", "")]
#[case::builtins_of_a_function("print.__self__.exec(s)", "1 DynamicCode __self__; 1 DynamicCode exec")]
#[case::getattr_given_away("g = getattr\ng(x, n)", "1 DynamicCode getattr")]
#[case::members_of_a_module("import os\nos.__dict__['sys' + 'tem']", "import os; 2 DynamicCode __dict__")]
#[case::vars("import os\nvars(os)[n]", "import os; 2 DynamicCode vars")]
#[case::bound_elsewhere("if 0:\n  import json as eval\neval('1')", "import json; 3 DynamicCode eval")]
#[case::bound_elsewhere_too("def f():\n  import json as __import__\n__import__(n)", "import json; 3 ComputedImport __import__")]
#[case::bound_twice("import os\nos.system('id')\nif 0:\n  import json as os", "import json; import os; 2 Subprocess os.system")]
#[case::member_of_an_import("__import__('os').system('id')", "import os; 1 Subprocess os.system")]
#[case::member_of_import_module(
    "import importlib\nimportlib.import_module('os').system('id')",
    "import importlib; import os; 2 Subprocess os.system"
)]
#[case::import_of_an_import("__import__('importlib').import_module('json')", "import importlib; import json")]
#[case::named_attribute_of_a_module("import os\ngetattr(os, 'system')('id')", "import os; 2 Subprocess os.system")]
#[case::starred("getattr(*[f, n], 'x')", "1 DynamicCode getattr")]
#[case::star_of_importlib("from importlib import *\nimport_module(n)", "import importlib; 1 ComputedImport importlib")]
#[case::star_of_posix("from posix import *\nsystem('id')", "import os; import posix; 1 Subprocess os.system")]
#[case::frozen("import _frozen_importlib as f\nf._gcd_import(n)", "import _frozen_importlib; 1 ComputedImport _frozen_importlib")]
#[case::inner_import("import os.path\nos.system('id')", "import os; import os.path; 2 Subprocess os.system")]
#[case::annotation("def f(x: eval('1')): pass", "1 DynamicCode eval")]
#[case::default("def f(x=eval('1')): pass", "1 DynamicCode eval")]
#[case::type_parameter("def f[T: eval('1')](): pass", "1 DynamicCode eval")]
#[case::in_a_string("f'{eval(x)!r:{eval}}'", "1 DynamicCode eval")]
#[case::in_a_pattern("match x:\n  case os.system: pass\nimport os", "import os; 2 Subprocess os.system")]
#[case::timed("import timeit\ntimeit.timeit(s)", "import timeit; 2 DynamicCode timeit.timeit")]
#[case::bytes("b'https://api.example.com/'", "host api.example.com")]
#[case::named_dunder("getattr(f, '__globals__')", "1 DynamicCode __globals__")]
#[case::builtins("__builtins__.eval", "1 DynamicCode __builtins__; 1 DynamicCode eval")]
#[case::import_builtins("import builtins as b\nb.exec('1')", "import builtins; 1 DynamicCode builtins; 2 DynamicCode exec")]
#[case::computed_import("__import__('sub' + 'process')", "1 ComputedImport __import__")]
#[case::import_by_literal("__import__('subprocess').run('id')", "import subprocess; 1 Subprocess subprocess")]
#[case::import_given_away("i = __import__\ni('os')", "1 ComputedImport __import__")]
#[case::importlib("import importlib\nimportlib.import_module('json')", "import importlib; import json")]
#[case::importlib_computed(
    "import importlib as i\ni.import_module('j' + 'son')",
    "import importlib; 2 ComputedImport importlib; 2 ComputedImport import_module"
)]
#[case::importlib_in_parts("from importlib import import_module as m\nm(n)", "import importlib.import_module; 1 ComputedImport importlib")]
#[case::pkgutil("import pkgutil", "import pkgutil; 1 ComputedImport pkgutil")]
#[case::runpy("import runpy", "import runpy; 1 DynamicCode runpy")]
#[case::subclasses("().__class__.__base__.__subclasses__()", "1 DynamicCode __base__; 1 DynamicCode __subclasses__")]
#[case::globals_of_a_function("(lambda: 0).__globals__", "1 DynamicCode __globals__")]
#[case::frames("try:\n  1/0\nexcept Exception as e:\n  e.__traceback__.tb_frame.f_back", "4 DynamicCode tb_frame; 4 DynamicCode f_back")]
#[case::modules("import sys\nsys.modules['os'].system('id')", "import sys; 2 ComputedImport sys.modules")]
#[case::attrgetter("from operator import attrgetter", "import operator.attrgetter; 1 DynamicCode operator.attrgetter")]
#[case::star("from os import *\nsystem('id')", "import os; 1 Subprocess os.system")]
#[case::module_in_a_variable("import os\nx = os\nx.system('id')", "import os")]
#[case::module_of_a_module("import json\njson.decoder.scanner.re.enum.sys.modules", "import json")]
#[case::formatted("'{0.__class__}'.format(x)", "")]
#[case::decorator("@eval\ndef f(): pass", "1 DynamicCode eval")]
#[case::class_getitem("class A:\n  __class_getitem__ = eval\nA['1']", "2 DynamicCode eval")]
fn ways_around_in_python(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(python(text), expected);
}

#[rstest]
#[case::nothing("console.log('hello')", "")]
#[case::imports(
    "import fs from 'node:fs'; import _ from 'lodash/fp'; export * from './x.mjs'; export { a } from 'a'",
    "import ./x.mjs; import a; import lodash/fp; import node:fs"
)]
#[case::common("const fs = require('fs')", "import fs")]
#[case::returns_at_the_top("const fs = require('fs'); return 1", "import fs")]
#[case::child_process("import { exec } from 'node:child_process'", "import node:child_process; 1 Subprocess child_process")]
#[case::urls("const x = 'https://a.example/'; const y = `https://b.example/${x}`", "host a.example; host b.example")]
#[case::by_literal("await import('node:vm')", "import node:vm; 1 DynamicCode vm")]
#[case::constructor_name("class A { f() { return this.constructor.name } }", "")]
fn what_a_program_in_javascript_shows(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(javascript(text), expected);
}

#[rstest]
#[case::eval("eval('1')", "1 DynamicCode eval")]
#[case::escaped_name("\\u0065val('1')", "1 DynamicCode eval")]
#[case::indirect("(0, eval)('1')", "1 DynamicCode eval")]
#[case::function("new Function('return 1')", "1 DynamicCode Function")]
#[case::global_computed("globalThis['ev' + 'al']('1')", "1 DynamicCode globalThis")]
#[case::global_literal("globalThis['eval']('1')", "1 DynamicCode eval")]
#[case::global_given_away("const g = globalThis", "1 DynamicCode globalThis")]
#[case::global_harmless("globalThis.console.log(1)", "")]
#[case::of_two_kinds("let a=1,b=1\na <!-- /*\neval('1')\n//*/ b", "3 DynamicCode eval")]
#[case::global_of_global("globalThis.globalThis['ev' + 'al']", "1 DynamicCode globalThis")]
#[case::constructor_in_a_variable("const F = (() => {}).constructor", "1 DynamicCode constructor")]
#[case::constructor_taken("const { constructor: F } = () => {}", "1 DynamicCode constructor")]
#[case::constructor_assigned("({ constructor: F } = f)", "1 DynamicCode constructor")]
#[case::constructor_template("(() => {}).constructor`return 1`", "1 DynamicCode constructor")]
#[case::constructor("(() => {}).constructor('return 1')()", "1 DynamicCode constructor")]
#[case::constructor_computed("[]['filter']['constructor']('return 1')()", "1 DynamicCode constructor")]
#[case::constructor_in_parts("const c = 'con' + 'structor'; [][c][c]('1')", "")]
#[case::import_computed("await import('node:' + 'vm')", "1 ComputedImport import()")]
#[case::import_of_code("await import('data:text/javascript,1')", "import data:; 1 DynamicCode import of a URL")]
#[case::import_of_code_in_capitals("await import('DATA:text/javascript,1')", "import data:; 1 DynamicCode import of a URL")]
#[case::builtin_taken("const { getBuiltinModule: g } = process; g('child_process')", "1 ComputedImport getBuiltinModule")]
#[case::builtin_imported("import { getBuiltinModule as g } from 'node:process'", "import node:process; 1 ComputedImport getBuiltinModule")]
#[case::program_in_a_callee("(() => { eval('1'); return process })().getBuiltinModule('fs')", "import fs; 1 DynamicCode eval")]
#[case::builtin_by_literal("process['getBuiltinModule'].call(null, 'vm')", "1 ComputedImport getBuiltinModule")]
#[case::require_of_a_module("const m = module; m.require('vm')", "1 ComputedImport require")]
#[case::process_in_a_variable("const p = process; p['bind' + 'ing']('spawn_sync')", "")]
#[case::require_computed("require('v' + 'm')", "1 ComputedImport require")]
#[case::require_given_away("const r = require; r('vm')", "1 ComputedImport require")]
#[case::create_require(
    "import { createRequire } from 'node:module'",
    "import node:module; 1 ComputedImport module; 1 ComputedImport createRequire"
)]
#[case::builtin("process.getBuiltinModule('vm')", "import vm; 1 DynamicCode vm")]
#[case::builtin_computed("process.getBuiltinModule('v' + 'm')", "1 ComputedImport getBuiltinModule; 1 ComputedImport require")]
#[case::binding("process.binding('spawn_sync')", "1 NativeCode binding")]
#[case::dlopen("process.dlopen(m, 'x.node')", "1 NativeCode dlopen")]
#[case::wasm("await WebAssembly.instantiate(b)", "1 DynamicCode WebAssembly")]
#[case::worker("import { Worker } from 'worker_threads'", "import worker_threads; 1 DynamicCode worker_threads")]
#[case::punctuation("[][(![]+[])[+[]]]", "")]
fn ways_around_in_javascript(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(javascript(text), expected);
}

#[test]
fn types_are_read_in_typescript_alone() {
    let text = "import x = require('fs'); const y: number = 1; enum E { A }";
    assert_eq!(told(&examine(Language::TypeScript, text.as_bytes())), "import fs");
    assert_eq!(examine(Language::JavaScript, text.as_bytes()).unclear, Some(Unclear::SyntaxError));
}

#[rstest]
#[case::python(Language::Python, "x = 1\nif x\n  print()", "SyntaxError: line 2, column 5: Expected `:`, found newline")]
#[case::unclosed(Language::Python, "print(", "SyntaxError: line 1, column 7: unexpected EOF while parsing")]
#[case::javascript(Language::JavaScript, "let x = 1\nlet = ;", "SyntaxError: line 2, column 7: Unexpected token")]
fn a_text_that_is_no_program_is_told_with_its_place(#[case] language: Language, #[case] text: &str, #[case] expected: &str) {
    assert_eq!(told(&examine(language, text.as_bytes())), expected);
}

#[rstest]
#[case::not_utf8(b"x = '\xff'", "Ambiguous: it is not UTF-8")]
#[case::cookie(
    b"#!/usr/bin/python\n# -*- coding: utf_7 -*-\n+AGUAdgBhAGw-(1)",
    "Ambiguous: it declares the encoding \"utf_7\", by which Python would read another text"
)]
#[case::vim_cookie(
    b"# vim: set fileencoding=unicode_escape :\n",
    "Ambiguous: it declares the encoding \"unicode_escape\", by which Python would read another text"
)]
#[case::second_cookie(
    b"# coding:! coding:unicode_escape\n",
    "Ambiguous: it declares the encoding \"unicode_escape\", by which Python would read another text"
)]
#[case::archive(b"x = 1\n#PK\x05\x06", "Ambiguous: it holds the end of a ZIP archive, which Python would run in its place")]
#[case::direction("x = 1\ny = '\u{202e}'".as_bytes(), "Ambiguous: line 2: U+202E shows text in another order than it is read in")]
#[case::lone_return(b"# a\rimport os", "Ambiguous: line 1: a carriage return without a line feed ends a line for some readers only")]
#[case::nul(b"x\0", "Ambiguous: it holds a NUL byte")]
fn what_is_read_in_two_ways_is_not_read(#[case] script: &[u8], #[case] expected: &str) {
    assert_eq!(told(&examine(Language::Python, script)), expected);
}

#[rstest]
#[case::utf8(b"# coding: utf-8\nimport os")]
#[case::other_spelling(b"# -*- coding: UTF_8 -*-\nimport os")]
#[case::mark(b"\xef\xbb\xbfimport os")]
#[case::windows(b"# a\r\nimport os\r\n")]
#[case::third_line(b"\n\n# coding: latin-1\nimport os")]
fn and_what_is_read_in_one_way_is(#[case] script: &[u8]) {
    assert_eq!(told(&examine(Language::Python, script)), "import os");
}

#[test]
fn what_cannot_be_told_whole_is_not_told_in_part() {
    let many: String = (0..=paddock_crds::preflight::MOST_IMPORTS).map(|number| format!("import m{number}\n")).collect();
    assert_eq!(examine(Language::Python, many.as_bytes()).unclear, Some(Unclear::TooMuch));
    for name in ["a\\u202eb".into(), "a".repeat(200), "a b".into(), "a\u{1b}[1m".into()] {
        let text = format!("import '{name}'");
        assert_eq!(examine(Language::JavaScript, text.as_bytes()).unclear, Some(Unclear::TooMuch), "{text:?}");
    }
}

#[test]
fn facts_that_policies_go_by_do_not_depend_on_what_there_is_room_for() {
    let dynamic = super::python::signs().filter(|name| !name.starts_with("subprocess"));
    let mut text: String = dynamic.map(|name| format!("getattr(x, {name:?})\n")).collect();
    text.push_str("compile, globals\nimport code, codeop, runpy, marshal, pickle, shelve, dill, ctypes\n");
    text.push_str("import subprocess\n");
    let seen = examine(Language::Python, text.as_bytes());
    assert_eq!(seen.findings.len(), paddock_crds::preflight::MOST_FINDINGS);
    assert!(seen.findings.iter().all(|finding| finding.what != "subprocess"), "{seen}");
    assert!(seen.subprocess && seen.dynamic_code);
    assert_eq!(seen.verdict, PreflightVerdict::Findings);
}

fn any_program() -> impl Strategy<Value = String> {
    let words = [
        "import ",
        "from ",
        "x",
        "eval",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        ":",
        "=",
        "=>",
        "'a'",
        "\"",
        "`",
        "${",
        "\n",
        "  ",
        "\t",
        "def ",
        "class ",
        "if ",
        "else",
        "lambda ",
        "return ",
        "function ",
        "async ",
        "await ",
        "f'{",
        "}'",
        "#",
        "//",
        "/*",
        "*/",
        "@",
        "1",
        "https://a.example",
        "\u{2028}",
        "é",
        "\\u0065",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..60).prop_map(|words| words.concat())
}

proptest! {
    /// Also of what is no program at all something is told, and it is no more than fits.
    #[test]
    fn any_text_is_told(program in any_program(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for language in [Language::Python, Language::JavaScript, Language::TypeScript] {
            for script in [program.as_bytes(), &bytes] {
                let seen = examine(language, script);
                prop_assert_eq!(seen.unclear.is_some(), seen.verdict == PreflightVerdict::Unclear);
                prop_assert!(seen.message.iter().all(|message| message.chars().count() <= 512 && !message.contains('\n')));
                prop_assert!(seen.imports.len() <= 128 && seen.imports.iter().all(|name| name.len() <= 128));
                prop_assert!(seen.findings.iter().all(|finding| finding.line >= 1));
            }
        }
    }
}
