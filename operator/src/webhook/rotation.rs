//! When the webhook's certificate is made, announced and taken into use. Pure.
//!
//! A certificate is used only after the API servers had time to take it into their bundle, and stays in the bundle for as long as a replica may still
//! serve it: at no moment is one served that nobody trusts.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;

/// How long a certificate is announced before it is used, at most.
const LONGEST_ANNOUNCEMENT: SignedDuration = SignedDuration::from_mins(5);

/// A certificate that is its own authority.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// PEM.
    pub(crate) chain: String,
    /// PEM.
    pub(crate) key: String,
    pub(crate) made: Timestamp,
}

/// Those that there are.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Certificates {
    /// The one that is served.
    pub(crate) current: Option<Certificate>,
    /// The one that will be.
    pub(crate) next: Option<Certificate>,
    /// PEM of the one that was.
    pub(crate) previous: Option<String>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing.
    Keep,
    /// Make the first one, or one in place of one that is over.
    Make,
    /// Make and announce the next one.
    Announce,
    /// Use the one that was announced.
    Use,
}

/// Decides. `lifetime` is that of a certificate: at two thirds of it another follows.
pub(crate) fn act(certificates: &Certificates, lifetime: SignedDuration, now: Timestamp) -> Act {
    act_after(certificates, lifetime, LONGEST_ANNOUNCEMENT.min(lifetime / 10), now)
}

/// The same with a time of its own between announcement and use.
pub(crate) fn act_after(certificates: &Certificates, lifetime: SignedDuration, announcement: SignedDuration, now: Timestamp) -> Act {
    let age = |certificate: &Certificate| now.duration_since(certificate.made);
    match (&certificates.current, &certificates.next) {
        (None, _) => Act::Make,
        (Some(_), Some(next)) if age(next) >= announcement => Act::Use,
        (Some(_), Some(_)) => Act::Keep,
        // A clock that was set back makes it young for too long, but never trusted by nobody.
        (Some(current), None) if age(current) >= lifetime => Act::Make,
        (Some(current), None) if age(current) >= lifetime * 2 / 3 => Act::Announce,
        (Some(_), None) => Act::Keep,
    }
}

impl Certificates {
    /// After the act, for which `made` is new.
    pub(crate) fn after(self, act: Act, made: Option<Certificate>) -> Self {
        let previous = |current: Option<Certificate>| current.map(|current| current.chain);
        match act {
            Act::Keep => self,
            Act::Make => Self { previous: previous(self.current), current: made, next: None },
            Act::Announce => Self { next: made, ..self },
            Act::Use => Self { previous: previous(self.current), current: self.next, next: None },
        }
    }

    /// What API servers are to trust, as PEM.
    pub(crate) fn bundle(&self) -> String {
        let current = self.current.iter().chain(&self.next).map(|certificate| certificate.chain.as_str());
        self.previous.as_deref().into_iter().chain(current).collect()
    }

    /// As fields of a Secret.
    pub(crate) fn fields(&self) -> BTreeMap<String, ByteString> {
        let of = |prefix: &str, certificate: &Option<Certificate>| {
            certificate.as_ref().map_or_else(Vec::new, |certificate| {
                vec![
                    (format!("{prefix}.crt"), certificate.chain.clone()),
                    (format!("{prefix}.key"), certificate.key.clone()),
                    (format!("{prefix}.made"), certificate.made.to_string()),
                ]
            })
        };
        let previous = self.previous.iter().map(|pem| ("previous.crt".to_owned(), pem.clone()));
        let all = of("tls", &self.current).into_iter().chain(of("next", &self.next)).chain(previous);
        all.map(|(name, text)| (name, ByteString(text.into_bytes()))).collect()
    }

    /// From the fields of a Secret. One that cannot be read is as if it were not there. One that somebody else made has no time, and is over for whoever
    /// makes them here.
    pub(crate) fn of(fields: &BTreeMap<String, ByteString>) -> Self {
        let text = |name: &str| fields.get(name).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        let of = |prefix: &str| {
            let made = text(&format!("{prefix}.made")).and_then(|text| text.parse().ok()).unwrap_or(Timestamp::MIN);
            Some(Certificate { chain: text(&format!("{prefix}.crt"))?, key: text(&format!("{prefix}.key"))?, made })
        };
        Self { current: of("tls"), next: of("next"), previous: text("previous.crt") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFETIME: SignedDuration = SignedDuration::from_secs(9000);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn made(name: &str, second: i64) -> Certificate {
        Certificate { chain: format!("<{name}>"), key: format!("key of {name}"), made: at(second) }
    }

    #[test]
    fn a_certificate_is_announced_used_and_remembered() {
        let none = Certificates::default();
        assert_eq!(act(&none, LIFETIME, at(0)), Act::Make);
        let first = none.after(Act::Make, Some(made("1", 0)));
        assert_eq!((act(&first, LIFETIME, at(5999)), act(&first, LIFETIME, at(6000))), (Act::Keep, Act::Announce));
        let announced = first.after(Act::Announce, Some(made("2", 6000)));
        assert_eq!(announced.bundle(), "<1><2>");
        assert_eq!((act(&announced, LIFETIME, at(6299)), act(&announced, LIFETIME, at(6300))), (Act::Keep, Act::Use));
        let used = announced.after(Act::Use, None);
        assert_eq!((used.bundle().as_str(), used.current.as_ref().unwrap().key.as_str()), ("<1><2>", "key of 2"));
        assert_eq!(act(&used, LIFETIME, at(6301)), Act::Keep);
        assert_eq!(act(&used, LIFETIME, at(6000 + 9000)), Act::Make, "nobody was here for a long time");
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let all = Certificates { current: Some(made("1", 0)), next: Some(made("2", 5)), previous: Some("<0>".into()) };
        assert!(Certificates::of(&all.fields()) == all);
        let foreign = BTreeMap::from([("tls.crt", "c"), ("tls.key", "k"), ("ca.crt", "a")]);
        let foreign = foreign.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into()))).collect();
        assert_eq!(Certificates::of(&foreign).current.unwrap().key, "k");
        assert!(Certificates::of(&BTreeMap::new()) == Certificates::default());
    }

    proptest! {
        /// Whenever the keeper looks, and whichever of the last certificates a replica still serves for the length of an announcement.
        #[test]
        fn at_no_moment_is_one_served_that_is_not_trusted(pauses in prop::collection::vec(1..400_i64, 1..200)) {
            let (mut certificates, mut now, mut number) = (Certificates::default(), 0, 0);
            // The bundle that an API server that lags still has, with when it was written.
            let mut bundles: Vec<(i64, String)> = Vec::new();
            for pause in pauses {
                now += pause;
                let what = act(&certificates, LIFETIME, at(now));
                number += 1;
                let before = certificates.current.clone();
                certificates = certificates.after(what, Some(made(&number.to_string(), now)));
                bundles.push((now, certificates.bundle()));
                let served = certificates.current.clone().unwrap().chain;
                let lagging = bundles.iter().rev().find(|(written, _)| now - written >= 300);
                if let (Some(before), Some((_, bundle))) = (&before, lagging) {
                    prop_assert!(what != Act::Use || bundle.contains(&served), "{bundle} {served}");
                    prop_assert!(certificates.bundle().contains(&before.chain), "a replica may still serve it");
                }
                let age = at(now).duration_since(certificates.current.as_ref().unwrap().made);
                prop_assert!(age < LIFETIME);
            }
        }
    }
}
