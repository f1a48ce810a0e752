use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;
use rstest::rstest;

use super::*;
use crate::subject::{PreflightFacts, RiskFacts, RunFacts, TenantFacts, UserFacts};

fn with_subject<T>(then: impl FnOnce(Subject<'_>) -> T) -> T {
    with_groups(&["system:authenticated".to_owned(), "team-data".to_owned()], then)
}

fn with_groups<T>(groups: &[String], then: impl FnOnce(Subject<'_>) -> T) -> T {
    let labels: BTreeMap<String, String> = [("team".to_owned(), "data".to_owned())].into();
    let imports = ["json".to_owned(), "subprocess".to_owned()];
    then(Subject {
        run: RunFacts {
            name: "run",
            labels: &labels,
            runtime: "python",
            image: "registry.example/python:3",
            script_hash: "aa",
            input_bytes: 7,
            timeout_seconds: 30,
            memory_bytes: 128 << 20,
            cpu_milli: 500,
            scratch_bytes: 16 << 20,
            network: vec!["api.example.com:443".into()],
            secrets: vec!["smtp"],
            data: Vec::new(),
            volumes: vec!["corpus"],
            dynamic_code: false,
            subprocess: true,
        },
        tenant: TenantFacts { name: "team-a", labels: &labels },
        requester: UserFacts { username: "jane", groups },
        end_user: None,
        risk: RiskFacts { score: 55, level: "High", reasons: vec!["ReadsSecrets", "CanSendSecrets"] },
        preflight: PreflightFacts { verdict: "Findings", imports: &imports, hosts: &[], dynamic_code: false, subprocess: true },
        // A Wednesday, half past eight in Berlin, half past seven in London.
        now: "2026-11-25T07:30:00Z".parse::<Timestamp>().unwrap(),
    })
}

fn holds(source: &str) -> Result<bool, String> {
    let expression = Expression::compile(source)?;
    with_subject(|subject| expression.holds(&variables(&subject).unwrap()))
}

#[rstest]
#[case::number("run.timeoutSeconds <= 30 && run.memoryBytes == 128 * 1024 * 1024", true)]
#[case::label("run.labels['team'] == tenant.labels.team", true)]
#[case::no_label("has(run.labels.sensitivity) && run.labels.sensitivity == 'high'", false)]
#[case::member("'team-data' in requester.groups", true)]
#[case::prefix("requester.groups.exists(group, group.startsWith('team-'))", true)]
#[case::all("requester.groups.all(group, group.size() < 10)", false)]
#[case::one("requester.groups.exists_one(group, group.startsWith('team-'))", true)]
#[case::nobody("endUser == null", true)]
#[case::nobody_else("endUser != null && endUser.username == 'joe'", false)]
#[case::pattern("run.image.matches('^registry[.]example/[a-z]+:[0-9]+$')", true)]
#[case::hours("now.getHours('Europe/Berlin') >= 8 && now.getHours('Europe/Berlin') < 18", true)]
#[case::other_hours("now.getHours('Europe/London') >= 8", false)]
#[case::weekday("now.getDayOfWeek('Europe/Berlin') in [1, 2, 3, 4, 5]", true)]
#[case::until("now < timestamp('2026-12-24T00:00:00Z')", true)]
#[case::secret("'smtp' in run.secrets && run.secrets.all(name, name.startsWith('s'))", true)]
#[case::network("run.network == ['api.example.com:443'] && run.network.all(to, to.endsWith(':443'))", true)]
#[case::volumes("run.volumes == ['corpus']", true)]
#[case::words("run.subprocess && !run.dynamicCode && size(run.data) == 0", true)]
#[case::risk("risk.score < 60 && risk.level == 'High' && 'CanSendSecrets' in risk.reasons", true)]
#[case::reasons("risk.reasons.exists(reason, reason.startsWith('Reaches'))", false)]
#[case::imports("'json' in preflight.imports && preflight.imports.all(module, module == 'json' || module == 'subprocess')", true)]
#[case::verdict("preflight.verdict != 'Unclear' && (!preflight.subprocess || run.subprocess)", true)]
#[case::sum("('team-' + run.labels.team) in requester.groups", true)]
#[case::sums("run.name + '-' + run.runtime == 'run-python'", true)]
#[case::loop_over_literals("['a', 'data'].exists(team, team == run.labels.team)", true)]
#[case::loop_with_a_sum("requester.groups.exists(g, g == 'team-' + run.labels.team)", true)]
#[case::choice("run.runtime == 'shell' ? false : run.inputBytes > 0", true)]
fn it_holds_or_not(#[case] source: &str, #[case] expected: bool) {
    assert_eq!(holds(source), Ok(expected));
}

/// A platform that acts for somebody names them: rules see both.
#[rstest]
#[case::by_name("requester.username == 'jane' && endUser != null && endUser.username == 'joe'", true)]
#[case::by_group("endUser != null && 'trial' in endUser.groups && !('trial' in requester.groups)", true)]
#[case::nobody("endUser == null", false)]
fn the_end_user_is_seen_beside_the_requester(#[case] source: &str, #[case] expected: bool) {
    let expression = Expression::compile(source).unwrap();
    let trial = ["trial".to_owned()];
    let held = with_subject(|subject| {
        let end_user = Some(UserFacts { username: "joe", groups: &trial });
        expression.holds(&variables(&Subject { end_user, ..subject }).unwrap())
    });
    assert_eq!(held, Ok(expected));
}

#[rstest]
#[case::key("run.labels.project == 'a'", "there is no project")]
#[case::computed_key("{'x': 1}[requester.username] == 1", "there is no such key")]
#[case::kind("run.name < 3", "_<_ does not take values of these kinds")]
#[case::number("run.timeoutSeconds", "it is neither true nor false")]
#[case::zero("run.inputBytes / (run.timeoutSeconds - 30) > 1", "it divides by zero")]
#[case::entry("requester.groups[7] == 'a'", "a list has no such entry")]
#[case::nobody("endUser.username == 'joe'", "")]
fn an_error_is_told_without_values(#[case] source: &str, #[case] expected: &str) {
    let why = holds(source).unwrap_err();
    assert!(why.contains(expected) && !why.contains("jane"), "{why}");
}

#[rstest]
#[case::syntax("run.", "")]
#[case::unknown("ran.name == 'a'", "ran is not known")]
#[case::field("run.nmae == 'a'", "run has no nmae; it has name")]
#[case::function("base64.encode(b'a') == 'a'", "")]
#[case::call("dyn(run.name) == 'a'", "dyn may not be used")]
#[case::zone("now.getHours('Europe/Atlantis') > 1", "there is no time zone Europe/Atlantis")]
#[case::computed_zone("now.getHours(run.name) > 1", "a time zone must be written out")]
#[case::computed_pattern("run.name.matches(run.image)", "the pattern of matches must be written out")]
#[case::wrong_pattern("run.name.matches('(')", "the pattern cannot be used")]
#[case::large_pattern("run.name.matches('(a{1000}){1000}')", "the pattern cannot be used")]
#[case::pattern_in_a_loop("requester.groups.all(g, g.matches('a'))", "matches cannot be used in a loop")]
#[case::list("requester.groups.map(g, g + g).size() > 1", "map and filter cannot be used")]
#[case::filter("requester.groups.filter(g, true).size() > 1", "map and filter cannot be used")]
#[case::nested("requester.groups.all(g, requester.groups.all(h, g == h))", "a loop cannot be in another")]
#[case::lists("(requester.groups + requester.groups).all(g, true)", "a loop runs over a field")]
#[case::choice("(true ? requester.groups : []).all(g, true)", "a loop runs over a field")]
#[case::sum("size(requester.groups + requester.groups) > 1", "one side of + must be written out")]
#[case::sum_of_a_map("size([] + run.labels) > 1", "one side of + must be written out")]
#[case::hidden_sum("size((true ? [] : [1]) + run.labels) > 1", "one side of + must be written out")]
#[case::sum_in_a_loop("run.labels.all(k, size(run.labels + run.labels) > 1)", "one side of + must be written out")]
#[case::member_in_a_loop("run.labels.all(k, k in requester.groups)", "in cannot be used in a loop")]
#[case::lists_in_a_loop("run.labels.all(k, requester.groups == requester.groups)", "lists cannot be compared in a loop")]
#[case::long_loop(
    "run.labels.all(k, k == 'a' || k == 'b' || k == 'c' || k == 'd' || k == 'e' || k == 'f' || k == 'g' || k == 'h' || k == 'i' || k == 'j' || k == 'k' || k == 'l')",
    "parts in loops"
)]
#[case::message("google.protobuf.Timestamp{seconds: 1} == now", "")]
fn what_cannot_be_used_is_found_before_any_run(#[case] source: &str, #[case] expected: &str) {
    let why = Expression::compile(source).unwrap_err();
    assert!(why.contains(expected) && !why.is_empty(), "{why}");
}

#[test]
fn no_shape_of_an_expression_is_too_much_for_the_parser() {
    let deep = [("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("{1:", "}"), ("size(", ")"), ("true ? ", " : 1")];
    for (open, close) in deep {
        let times = MAX_LENGTH / (open.len() + close.len()) - 1;
        let source = open.repeat(times) + "1" + &close.repeat(times);
        let begin = Instant::now();
        let _ = Expression::compile(&source);
        assert!(begin.elapsed() < Duration::from_secs(5), "{open}: {:?}", begin.elapsed());
    }
    for source in
        ["1+".repeat(500) + "1", "'a'".repeat(300), "a.".repeat(500) + "b", "[[1],".repeat(200), "\\".repeat(1000), "\"\"\"".into()]
    {
        assert!(Expression::compile(&source).is_err(), "{source}");
    }
    assert!(Expression::compile(&"x".repeat(MAX_LENGTH + 1)).is_err());
}

#[test]
fn the_most_expensive_loop_ends_soon() {
    let source = format!("requester.groups.all(g, {})", ["g.contains('bbbb')"; 8].join(" || "));
    let expression = Expression::compile(&source).unwrap();
    let groups: Vec<String> = (0..MAX_LIST).map(|_| "a".repeat(256)).collect();
    let begin = Instant::now();
    let _ = with_groups(&groups, |subject| expression.holds(&variables(&subject).unwrap()));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let more = vec![String::new(); MAX_LIST + 1];
    let refused = with_groups(&more, |subject| variables(&subject).map(drop));
    assert_eq!(refused, Err("requester.groups has more than 1000 entries".into()));
}

/// Pieces of which chance makes sentences that a parser has not seen.
const PIECES: [&str; 48] = [
    "run",
    "tenant",
    "requester",
    "endUser",
    "now",
    ".",
    "labels",
    "groups",
    "name",
    "username",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ",",
    ":",
    "?",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "==",
    "!=",
    "<",
    ">=",
    "&&",
    "||",
    " in ",
    "has(",
    ".exists(g, g",
    ".all(g, ",
    "'a'",
    "\"",
    "r'\\'",
    "b'\\xff'",
    "1",
    "-9223372036854775808",
    "1e400",
    "0xffu",
    "null",
    "true",
    "timestamp(",
    "getHours('UTC')",
    "\u{1f600}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever is written, it is refused or can be evaluated; nothing panics, overflows or takes long.
    #[test]
    fn nothing_that_can_be_written_is_trouble(pieces in prop::collection::vec(select(PIECES.to_vec()), 0..60)) {
        if let Ok(expression) = Expression::compile(&pieces.concat()) {
            let _ = with_subject(|subject| expression.holds(&variables(&subject).unwrap()));
        }
    }

    #[test]
    fn no_text_is_trouble(text in ".{0,200}") {
        let _ = Expression::compile(&text);
    }
}
