//! Secrets that the gateway adds to requests of runs. They are read anew every few seconds for as long as a run needs them, if those who wrote the
//! policies that add them may read them too; the script never holds them.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use paddock_crds::{ScriptRunStatus, Verdict};
use paddock_egress::https::{SecretText, ToldField, ToldHttps, Value};
use paddock_policy::{AT_GATEWAY, Found, Https, Object, ObjectKind, Policy, SecretKey, SecretValues};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::context::Context;
use crate::error::Error;
use crate::script_run::access::forbidden_to_the_operator;
use crate::script_run::given::{Fetched, fetch, forbidden_to_the_author};

/// Longest value, in bytes: hosts take heads of 8 KiB.
const LONGEST: usize = 4 << 10;
/// Shortest one, in bytes: less is not covered in what a script puts out.
const SHORTEST: usize = 6;
/// Values of one key that are covered in what a run puts out: the last ones that it was told.
const COVERED: usize = 8;

/// How often values are read anew.
const READ_EVERY: Duration = Duration::from_secs(5);
/// After an answer that did not come.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// What was not read again for so long does not count any more.
const LAPSES: Duration = Duration::from_secs(30);
/// Values that are read at once: an object has up to a megabyte, whatever is needed of it.
const AT_ONCE: usize = 4;

/// Where a value is from, and by which policies: what was read under others does not count, since it is their authors who answer for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) secret: SecretKey,
    /// UIDs and generations.
    policies: Vec<(String, i64)>,
}

impl Place {
    pub(crate) fn new(namespace: &str, secret: &SecretKey, adding: &[Arc<Policy>]) -> Self {
        let policies = adding.iter().map(|policy| (policy.taken.uid.clone(), policy.taken.generation)).collect();
        Self { namespace: namespace.to_owned(), secret: secret.clone(), policies }
    }
}

/// What runs need, with the policies that add it.
pub(crate) type Needs = BTreeMap<Place, Vec<Arc<Policy>>>;

/// Values as they were found last; `None` for one that cannot be had. It is never printed.
pub(crate) type Values = BTreeMap<Place, Option<Vec<u8>>>;

/// Values that runs were told, by UID.
#[derive(Default)]
pub(crate) struct ToldToRuns(BTreeMap<String, BTreeMap<SecretKey, Vec<Vec<u8>>>>);

impl ToldToRuns {
    pub(crate) fn remember(&mut self, uid: &str, secret: &SecretKey, value: &[u8]) {
        let values = self.0.entry(uid.to_owned()).or_default().entry(secret.clone()).or_default();
        if !values.iter().any(|known| known == value) {
            values.push(value.to_vec());
            if values.len() > COVERED {
                values.remove(0);
            }
        }
    }

    pub(crate) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    pub(super) fn of(&self, uid: &str, secret: &SecretKey) -> &[Vec<u8>] {
        self.0.get(uid).and_then(|values| values.get(secret)).map_or(&[], Vec::as_slice)
    }
}

/// Keys that the gateway may add for a run, by what was decided when it was admitted.
pub(crate) fn decided(status: &ScriptRunStatus) -> BTreeSet<SecretKey> {
    let granted = status.decisions.iter().filter(|decision| decision.verdict == Verdict::Granted);
    let key = |permission: &str| {
        let (name, key) = permission.strip_prefix(AT_GATEWAY)?.split_once('/')?;
        Some(SecretKey { name: name.to_owned(), key: key.to_owned() })
    };
    granted.filter_map(|decision| key(&decision.permission)).collect()
}

/// As the gateway is told it, with what `value` knows of each key.
pub(crate) fn told(https: Https, mut value: impl FnMut(&SecretKey) -> Option<Vec<u8>>) -> ToldHttps {
    let field = |field: paddock_policy::Field| {
        let secret = value(&field.secret).filter(|value| Value::new(&field.prefix, value).is_some());
        ToldField { name: field.name, prefix: field.prefix, secret: secret.as_deref().map(SecretText::of) }
    };
    ToldHttps { port: https.port, fields: https.fields.into_iter().map(field).collect(), authorities: https.authorities }
}

/// Reads values for as long as this replica leads: those that are missing at once, all of them every few seconds.
pub(crate) async fn keep(context: &Context) {
    let egress = &context.egress;
    let mut again = interval(READ_EVERY);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut read_last = BTreeMap::<Place, Instant>::new();
    let mut has_failed = false;
    loop {
        let is_all = tokio::select! {
            _ = again.tick() => true,
            () = egress.missing.notified() => false,
            () = sleep(RETRY_EVERY), if has_failed => false,
        };
        let needs = super::lock(&egress.needs).clone();
        read_last.retain(|place, _| needs.contains_key(place));
        let to_read: Needs = {
            let mut values = super::lock(&egress.values);
            values.retain(|place, _| needs.contains_key(place));
            needs.into_iter().filter(|(place, _)| is_all || !values.contains_key(place)).collect()
        };
        // What fails again and again is told of once.
        let is_again = std::mem::take(&mut has_failed);
        let mut reads = stream::iter(to_read).map(|(place, adding)| read_once(place, adding, is_again, context)).buffer_unordered(AT_ONCE);
        // Each counts as soon as it is there: one that takes long holds up no other run.
        while let Some((place, value)) = reads.next().await {
            has_failed |= value.is_none();
            let lapses = read_last.get(&place).is_none_or(|last| last.elapsed() > LAPSES);
            let value = match value {
                Some(value) => {
                    read_last.insert(place.clone(), Instant::now());
                    value
                }
                None if lapses && super::lock(&egress.values).contains_key(&place) => None,
                None => continue,
            };
            if super::lock(&egress.values).insert(place, value.clone()) != Some(value) {
                egress.changed.notify_one();
            }
        }
    }
}

/// `None` beside the place: nothing was found out.
async fn read_once(place: Place, adding: Vec<Arc<Policy>>, is_again: bool, context: &Context) -> (Place, Option<Option<Vec<u8>>>) {
    let (namespace, secret) = (place.namespace.as_str(), place.secret.to_string());
    let found = match read(namespace, &place.secret, &adding, context).await {
        Ok(Ok(value)) => Some(Some(value)),
        Ok(Err(found)) => {
            let is_news = super::lock(&context.egress.values).get(&place) != Some(&None);
            if let Found::Unusable { message, .. } = found
                && is_news
            {
                tracing::warn!(namespace, secret, why = message, "a Secret that the gateway adds for runs cannot be had");
            }
            Some(None)
        }
        Err(error) => {
            if !is_again {
                tracing::warn!(namespace, secret, error = error.chain(), "a Secret that the gateway adds for runs could not be read");
            }
            None
        }
    };
    (place, found)
}

/// Reads a value, if everybody who adds it may read it. `Err` of the inner: why it cannot be had.
pub(crate) async fn read(
    namespace: &str,
    secret: &SecretKey,
    adding: &[impl Borrow<Policy>],
    context: &Context,
) -> Result<Result<Vec<u8>, Found>, Error> {
    let object = Object { kind: ObjectKind::Secret, name: secret.name.clone() };
    for policy in adding {
        if let Some(found) = forbidden_to_the_author(policy.borrow(), &object, namespace, context).await? {
            return Ok(Err(found));
        }
    }
    value(namespace, secret, context).await
}

/// Reads a value, whoever may.
async fn value(namespace: &str, secret: &SecretKey, context: &Context) -> Result<Result<Vec<u8>, Found>, Error> {
    let object = Object { kind: ObjectKind::Secret, name: secret.name.clone() };
    let content = match fetch::<Secret>(namespace, &secret.name, context).await? {
        Fetched::Read(_, content) => content,
        Fetched::Absent => return Ok(Err(Found::absent(&object))),
        Fetched::Unreadable(why) => return Ok(Err(Found::unusable(format!("the {object} cannot be read: {why}")))),
        Fetched::Unfit(why) => return Ok(Err(Found::unusable(format!("the {object} cannot be used: {why}")))),
        Fetched::Forbidden => return Ok(Err(Found::forbidden("Paddock", forbidden_to_the_operator(&object, &context.settings)))),
    };
    let value = content.bytes.get(&secret.key).map(|value| value.0.trim_ascii().to_vec());
    let unusable = |why: String| Ok(Err(Found::unusable(format!("the key {} of the {object} {why}", secret.key))));
    match value {
        None => unusable("is not there".into()),
        Some(value) if value.is_empty() => unusable("is empty".into()),
        Some(value) if value.len() < SHORTEST => {
            unusable(format!("has fewer than {SHORTEST} bytes, which cannot be covered in what a script puts out"))
        }
        Some(value) if value.len() > LONGEST => {
            unusable(format!("has more than {LONGEST} bytes, which no header can be relied on to carry"))
        }
        Some(value) if Value::new("", &value).is_none() => unusable("has characters that no header can carry".into()),
        Some(value) => Ok(Ok(value)),
    }
}

/// Everything that has to be covered in what a run puts out because the gateway has told it to hosts. `Err` if it cannot be had any more.
pub(crate) async fn values(
    namespace: &str,
    uid: &str,
    status: &ScriptRunStatus,
    context: &Context,
) -> Result<Result<SecretValues, String>, Error> {
    let mut all = Vec::new();
    for secret in decided(status) {
        let known = super::lock(&context.egress.told_to_runs).of(uid, &secret).to_vec();
        let known = if known.is_empty() {
            // Another operator told it.
            match value(namespace, &secret, context).await? {
                Ok(value) => vec![value],
                Err(_) => return Ok(Err(format!("the Secret {secret} cannot be read any more, so what it held cannot be covered"))),
            }
        } else {
            known
        };
        all.extend(known.into_iter().map(|value| (secret.name.clone(), value)));
    }
    Ok(Ok(SecretValues(all)))
}

#[cfg(test)]
mod tests {
    use http::Method;
    use paddock_crds::Decision;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{context, expect};

    fn key() -> SecretKey {
        SecretKey { name: "api".into(), key: "token".into() }
    }

    fn status() -> ScriptRunStatus {
        let decision = |permission: &str, verdict| Decision { permission: permission.into(), verdict, rule: String::new() };
        let decisions = vec![
            decision("gateway-secret:api/token", Verdict::Granted),
            decision("gateway-secret:no/token", Verdict::Refused),
            decision("secrets:smtp", Verdict::Granted),
        ];
        ScriptRunStatus { decisions, ..ScriptRunStatus::default() }
    }

    const PATH: &str = "/api/v1/namespaces/team/secrets/api";

    #[rstest::rstest]
    #[case::usable(json!({ "data": { "token": "IGh1bnRlcjIK" } }), Ok("hunter2"))]
    #[case::no_key(json!({ "data": { "other": "aHVudGVyMg==" } }), Err("the key token of the Secret api is not there"))]
    #[case::empty(json!({ "data": { "token": "Cg==" } }), Err("the key token of the Secret api is empty"))]
    #[case::short(json!({ "data": { "token": "aHVudDI=" } }), Err("the key token of the Secret api has fewer than 6 bytes, which cannot be covered in what a script puts out"))]
    #[case::two_lines(json!({ "data": { "token": "aHVudGVyCjI=" } }), Err("the key token of the Secret api has characters that no header can carry"))]
    #[tokio::test]
    async fn a_value_is_what_a_header_can_carry(#[case] body: serde_json::Value, #[case] expected: Result<&str, &str>) {
        let (context, fake) = context(vec![expect(Method::GET, PATH, 200, body)], &[]);
        let found = value("team", &key(), &context).await.unwrap();
        let found = found.map(|value| String::from_utf8(value).unwrap()).map_err(|found| match found {
            Found::Unusable { message, .. } => message,
            Found::Labels(_) => String::new(),
        });
        assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned));
        fake.finished().await;
    }

    /// For half a minute what was known counts.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_any_more_does_not_count_for_ever() {
        let secret = json!({ "data": { "token": "aHVudGVyMg==" } });
        let failures = (0..20).map(|_| expect(Method::GET, PATH, 500, json!("not now")));
        let (context, _fake) = context([expect(Method::GET, PATH, 200, secret)].into_iter().chain(failures).collect(), &[]);
        let place = Place::new("team", &key(), &[]);
        super::super::lock(&context.egress.needs).insert(place.clone(), Vec::new());
        let known = || super::super::lock(&context.egress.values).get(&place).cloned();
        let (begin, mut seen) = (Instant::now(), Vec::new());
        let watch = async {
            loop {
                if let Some(value) = known().filter(|value| seen.last() != Some(value)) {
                    seen.push(value);
                }
                if seen.last() == Some(&None) {
                    return begin.elapsed();
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let took = tokio::select! {
            () = keep(&context) => unreachable!("it goes on"),
            took = watch => took,
        };
        assert_eq!(seen, [Some(b"hunter2".to_vec()), None]);
        assert!((Duration::from_secs(30)..Duration::from_secs(60)).contains(&took), "{took:?}");
    }

    #[tokio::test]
    async fn what_a_run_was_told_is_covered_and_what_another_operator_told_is_read() {
        let secret = json!({ "data": { "token": "aHVudGVyMg==" } });
        let exchanges = vec![expect(Method::GET, PATH, 200, secret), expect(Method::GET, PATH, 404, json!("gone"))];
        let (context, fake) = context(exchanges, &[]);
        let named = |values: &[&str]| values.iter().map(|value| ("api".to_owned(), value.as_bytes().to_vec())).collect::<Vec<_>>();
        let found = async || values("team", "uid", &status(), &context).await.unwrap().map(|values| values.0);
        assert_eq!(found().await, Ok(named(&["hunter2"])));
        assert!(found().await.unwrap_err().contains("api/token cannot be read any more"));
        for value in ["one", "two", "one"] {
            super::super::lock(&context.egress.told_to_runs).remember("uid", &key(), value.as_bytes());
        }
        assert_eq!(found().await, Ok(named(&["one", "two"])));
        fake.finished().await;
    }
}
