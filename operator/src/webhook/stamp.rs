//! What the webhook answers: the same stamps as the MutatingAdmissionPolicies of the chart, where these are not served. Pure.
//!
//! Nothing here is trusted: a ValidatingAdmissionPolicy compares what is stored with what the API server knows of who asks.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::names::{APPROVER, AUTHOR, FINALIZER, REQUESTER};
use crate::readable::{Fields, fields};

/// What is stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// Who creates a run.
    Requester,
    /// Who writes the spec of a policy.
    Author,
    /// Who decides on what runs would do.
    Approver,
}

impl Stamp {
    /// All, with the path of each, which the chart names.
    pub(crate) const ALL: [(Self, &'static str); 3] =
        [(Self::Requester, "/stamp/requester"), (Self::Author, "/stamp/author"), (Self::Approver, "/stamp/approver")];

    fn annotation(self) -> &'static str {
        match self {
            Self::Requester => REQUESTER,
            Self::Author => AUTHOR,
            Self::Approver => APPROVER,
        }
    }
}

/// An AdmissionReview. Objects are kept as text: whoever writes them may nest them deeper than a parser goes.
#[derive(Deserialize)]
struct Review<'a> {
    #[serde(borrow)]
    request: Request<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    user_info: UserInfo,
    #[serde(borrow)]
    object: &'a RawValue,
    #[serde(borrow, default)]
    old_object: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct UserInfo {
    #[serde(default)]
    username: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
}

/// The answer to an AdmissionReview. `Err` for what is none: the API server then refuses the request of the user.
pub(crate) fn answer(stamp: Stamp, review: &[u8]) -> Result<Value, serde_json::Error> {
    let Review { request } = serde_json::from_slice(review)?;
    let object: Fields<'_> = serde_json::from_str(request.object.get())?;
    let metadata = fields(&object, "metadata")?;
    let annotations = metadata.contains_key("annotations").then(|| fields(&metadata, "annotations")).transpose()?;
    let values = match stamp {
        Stamp::Author => author(&request, &object)?,
        Stamp::Requester | Stamp::Approver => {
            let is_stamped = annotations.iter().flatten().any(|(key, _)| key.starts_with(stamp.annotation()));
            (!is_stamped).then(|| of_the_user(&request.user_info))
        }
    };
    let mut patch = Vec::new();
    if let Some(values) = values {
        if annotations.is_none() {
            patch.push(json!({ "op": "add", "path": "/metadata/annotations", "value": {} }));
        }
        for (suffix, value) in ["", "-uid", "-groups"].into_iter().zip(values) {
            let name = format!("{}{suffix}", stamp.annotation()).replace('/', "~1");
            patch.push(json!({ "op": "add", "path": format!("/metadata/annotations/{name}"), "value": value }));
        }
        if stamp == Stamp::Requester {
            patch.extend(finalizer(&metadata)?);
        }
    }
    Ok(reviewed(&request.uid, &patch))
}

fn reviewed(uid: &str, patch: &[Value]) -> Value {
    let mut response = json!({ "uid": uid, "allowed": true });
    if !patch.is_empty() {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = base64(&Value::from(patch).to_string()).into();
    }
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
}

fn base64(text: &str) -> String {
    let bytes = k8s_openapi::ByteString(text.as_bytes().to_vec());
    serde_json::to_value(bytes).ok().and_then(|value| value.as_str().map(ToOwned::to_owned)).unwrap_or_default()
}

fn of_the_user(user: &UserInfo) -> [String; 3] {
    let groups: Vec<String> = user.groups.iter().map(|group| group.replace('%', "%25").replace(',', "%2C")).collect();
    [user.username.clone(), user.uid.clone(), groups.join(",")]
}

/// Whoever writes the spec, else who is known; where nobody is, whoever writes anything. The API server writes the same value as the same text.
fn author(request: &Request<'_>, object: &Fields<'_>) -> Result<Option<[String; 3]>, serde_json::Error> {
    let Some(old) = request.old_object.filter(|old| old.get() != "null") else { return Ok(Some(of_the_user(&request.user_info))) };
    let old: Fields<'_> = serde_json::from_str(old.get())?;
    let spec = |object: &Fields<'_>| object.get("spec").map(|spec| spec.get().to_owned());
    let metadata = fields(&old, "metadata")?;
    let before = fields(&metadata, "annotations")?;
    let stamp =
        |suffix: &str| before.get(format!("{AUTHOR}{suffix}").as_str()).and_then(|value| serde_json::from_str::<String>(value.get()).ok());
    Ok(Some(match [stamp(""), stamp("-uid"), stamp("-groups")] {
        [Some(user), Some(uid), Some(groups)] if !user.is_empty() && spec(object) == spec(&old) => [user, uid, groups],
        _ => of_the_user(&request.user_info),
    }))
}

fn finalizer(metadata: &Fields<'_>) -> Result<Option<Value>, serde_json::Error> {
    let present: Option<Vec<String>> = metadata.get("finalizers").map(|list| serde_json::from_str(list.get())).transpose()?;
    Ok(match present {
        None => Some(json!({ "op": "add", "path": "/metadata/finalizers", "value": [FINALIZER] })),
        Some(list) if list.iter().any(|finalizer| finalizer == FINALIZER) => None,
        Some(_) => Some(json!({ "op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER })),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn review(object: &Value, old: &Value) -> Vec<u8> {
        let user = json!({ "username": "jane", "uid": "u1", "groups": ["dev", "a,b%"] });
        let request = json!({ "uid": "r1", "operation": "CREATE", "userInfo": user, "object": object, "oldObject": old });
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request }).to_string().into_bytes()
    }

    /// The patch as pairs of path and value.
    fn patched(stamp: Stamp, object: &Value, old: &Value) -> Vec<(String, Value)> {
        let answer = answer(stamp, &review(object, old)).unwrap();
        assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("r1"), &json!(true)));
        let Some(patch) = answer["response"].get("patch") else { return Vec::new() };
        let bytes: k8s_openapi::ByteString = serde_json::from_value(patch.clone()).unwrap();
        let patch: Vec<Value> = serde_json::from_slice(&bytes.0).unwrap();
        patch.into_iter().map(|change| (change["path"].as_str().unwrap().to_owned(), change["value"].clone())).collect()
    }

    fn stamped(name: &str, [user, uid, groups]: [&str; 3]) -> Vec<(String, Value)> {
        let path = format!("/metadata/annotations/paddock.dev~1{name}");
        vec![(path.clone(), json!(user)), (format!("{path}-uid"), json!(uid)), (format!("{path}-groups"), json!(groups))]
    }

    const JANE: [&str; 3] = ["jane", "u1", "dev,a%2Cb%25"];

    #[test]
    fn a_run_is_stamped_with_who_creates_it() {
        let annotations = ("/metadata/annotations".to_owned(), json!({}));
        let finalizer = ("/metadata/finalizers".to_owned(), json!(["paddock.dev/sandbox"]));
        let all = [vec![annotations], stamped("requester", JANE), vec![finalizer]].concat();
        assert_eq!(patched(Stamp::Requester, &json!({ "metadata": {} }), &Value::Null), all);
        let has = json!({ "metadata": { "annotations": { "a": "b" }, "finalizers": ["x/y"] } });
        let mut expected = stamped("requester", JANE);
        expected.push(("/metadata/finalizers/-".into(), json!("paddock.dev/sandbox")));
        assert_eq!(patched(Stamp::Requester, &has, &Value::Null), expected);
        let has = json!({ "metadata": { "annotations": {}, "finalizers": ["paddock.dev/sandbox"] } });
        assert_eq!(patched(Stamp::Requester, &has, &Value::Null), stamped("requester", JANE));
    }

    #[rstest]
    #[case(Stamp::Requester, "paddock.dev/requester")]
    #[case(Stamp::Requester, "paddock.dev/requester-else")]
    #[case(Stamp::Approver, "paddock.dev/approver-uid")]
    fn what_somebody_brings_along_is_left_for_the_guard_to_refuse(#[case] stamp: Stamp, #[case] key: &str) {
        assert_eq!(patched(stamp, &json!({ "metadata": { "annotations": { key: "admin" } } }), &Value::Null), []);
    }

    #[test]
    fn the_author_is_who_wrote_the_spec_last() {
        let of = |spec: i64, annotations: Value| json!({ "metadata": { "annotations": annotations }, "spec": { "a": spec } });
        let anna = json!({ "paddock.dev/author": "anna", "paddock.dev/author-uid": "u2", "paddock.dev/author-groups": "ops" });
        assert_eq!(patched(Stamp::Author, &of(1, json!({})), &Value::Null), stamped("author", JANE));
        assert_eq!(patched(Stamp::Author, &of(2, anna.clone()), &of(1, anna.clone())), stamped("author", JANE));
        // Whatever else is written, and whatever is written over it.
        let forged = json!({ "paddock.dev/author": "jane", "note": "x" });
        assert_eq!(patched(Stamp::Author, &of(1, forged), &of(1, anna)), stamped("author", ["anna", "u2", "ops"]));
        // Nobody was known: it was written before anybody was stamped, or by a version that stamped no groups.
        for before in [
            json!({}),
            json!({ "paddock.dev/author": "anna" }),
            json!({ "paddock.dev/author": "", "paddock.dev/author-uid": "", "paddock.dev/author-groups": "" }),
        ] {
            assert_eq!(patched(Stamp::Author, &of(1, json!({})), &of(1, before)), stamped("author", JANE));
        }
    }

    #[test]
    fn an_object_may_be_nested_as_deep_as_it_likes() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let text = format!(
            r#"{{"request":{{"uid":"r1","userInfo":{{"username":"jane"}},"object":{{"metadata":{{"managedFields":{deep}}},"spec":{deep}}},"oldObject":null}}}}"#
        );
        let answered = answer(Stamp::Author, text.as_bytes()).unwrap();
        assert_eq!(answered["response"]["allowed"], true);
    }

    #[rstest]
    #[case(b"")]
    #[case(b"{}")]
    #[case(br#"{"request":{"uid":"a","userInfo":{},"object":[]}}"#)]
    #[case(br#"{"request":{"uid":"a","userInfo":{},"object":{"metadata":7}}}"#)]
    #[case(br#"{"request":{"uid":"a","userInfo":{},"object":{"metadata":{"annotations":[]}}}}"#)]
    fn what_is_no_review_is_an_error(#[case] review: &[u8]) {
        for (stamp, _) in Stamp::ALL {
            assert!(answer(stamp, review).is_err());
        }
    }
}
