//! What the cluster was found to be, as decisions use it.

use kube::runtime::reflector::ObjectRef;
use paddock_crds::{DIAGNOSIS, Diagnosis, Reason};
use paddock_policy::{Refusal, SandboxNetwork, failing, not_enforced, unseen};

use crate::config::Settings;
use crate::context::Context;
use crate::readable::Readable;
use crate::script_run::pod::has_network;
use crate::script_run::validate::ValidRun;
use crate::server::hash_of;

/// Why a run that the policies allow is refused all the same.
pub(crate) fn refusal(run: &ValidRun, context: &Context) -> Option<Refusal> {
    // Where no doctor is installed any more, nobody would see that what has failed holds again.
    context.settings.doctor_namespace.as_ref()?;
    let stored = context.caches.diagnoses.get(&ObjectRef::new(DIAGNOSIS))?;
    refusal_by(run, &stored, &context.settings)
}

/// Pure.
fn refusal_by(run: &ValidRun, stored: &Readable<Diagnosis>, settings: &Settings) -> Option<Refusal> {
    // They are how it is found out that all is well again.
    if settings.doctor_namespace.as_ref() == Some(&run.namespace) {
        return None;
    }
    match &stored.0 {
        Ok(diagnosis) => not_enforced(diagnosis, network(run, settings)),
        Err(unreadable) => {
            let message = format!("the diagnosis {DIAGNOSIS} of the cluster cannot be read: {}", unreadable.why);
            Some(Refusal { reason: Reason::CheckFailed, message })
        }
    }
}

fn network(run: &ValidRun, settings: &Settings) -> SandboxNetwork {
    match (has_network(run), settings.sandbox_has_interface) {
        (true, _) => SandboxNetwork::Granted,
        (false, true) => SandboxNetwork::Interface,
        (false, false) => SandboxNetwork::None,
    }
}

/// What metrics tell of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Checks that fail, and that nobody has said to tolerate.
    pub(crate) failing: usize,
    /// The same of those that could not be looked at and might have been.
    pub(crate) not_seen: usize,
    /// When the cluster was examined last, in seconds since the epoch.
    pub(crate) examined: i64,
}

pub(crate) fn told(context: &Context) -> Told {
    if context.settings.doctor_namespace.is_none() {
        return Told::default();
    }
    let told = context.caches.diagnoses.get(&ObjectRef::new(DIAGNOSIS)).map(|stored| told_of(&stored)).unwrap_or_default();
    // A cluster that nobody examines is to be noticed too: counted from when this replica leads.
    let since = context.fence.up_since().as_second();
    Told { examined: if told.examined == 0 { since } else { told.examined }, ..told }
}

/// Pure. What cannot be read refuses everything, as a failing check does.
fn told_of(stored: &Readable<Diagnosis>) -> Told {
    let Ok(diagnosis) = &stored.0 else { return Told { failing: 1, ..Told::default() } };
    let examined = diagnosis.status.as_ref().and_then(|status| status.examined_at.as_ref());
    Told {
        failing: failing(diagnosis).count(),
        not_seen: unseen(diagnosis).count(),
        examined: examined.map_or(0, |time| time.0.as_second()),
    }
}

/// What decisions look at: what fails.
pub(crate) fn what_matters(stored: &Readable<Diagnosis>) -> u64 {
    let failing = stored.0.as_ref().ok().map(|diagnosis| failing(diagnosis).map(|result| &result.name).collect::<Vec<_>>());
    hash_of(&failing)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use paddock_crds::{Check, CheckResult, CheckVerdict, DiagnosisSpec, DiagnosisStatus};

    use super::*;
    use crate::readable::Unreadable;
    use crate::script_run::fixtures::{a_run, settings, valid};

    fn failing_with(check: Check) -> Readable<Diagnosis> {
        let last_transition_time = Time(jiff::Timestamp::UNIX_EPOCH);
        let result = CheckResult { name: check, verdict: CheckVerdict::Fails, message: "seen".into(), last_transition_time };
        let status = DiagnosisStatus { checks: vec![result], ..DiagnosisStatus::default() };
        Readable(Ok(Diagnosis { status: Some(status), ..Diagnosis::new(DIAGNOSIS, DiagnosisSpec::default()) }))
    }

    #[test]
    fn the_doctors_own_runs_alone_are_not_refused() {
        let (run, settings) = (valid(&a_run()), settings());
        let bad = failing_with(Check::NotRoot);
        assert!(refusal_by(&run, &bad, &settings).is_some());
        assert!(refusal_by(&run, &failing_with(Check::NetworkedNames), &settings).is_none(), "it has no network");
        let doctors = Settings { doctor_namespace: Some(run.namespace.clone()), ..settings.clone() };
        assert!(refusal_by(&run, &bad, &doctors).is_none());
        let others = Settings { doctor_namespace: Some("doctor".into()), ..settings };
        assert!(refusal_by(&run, &bad, &others).is_some());
    }

    #[test]
    fn where_every_sandbox_has_an_interface_all_depend_on_network_policies() {
        let settings = Settings { sandbox_has_interface: true, ..settings() };
        assert!(refusal_by(&valid(&a_run()), &failing_with(Check::NetworkPolicyIpv4), &settings).is_some());
    }

    #[test]
    fn what_cannot_be_read_is_no_good_news() {
        let unreadable = Unreadable { why: "too deep".into(), metadata: ObjectMeta::default(), status: None };
        let refusal = refusal_by(&valid(&a_run()), &Readable(Err(unreadable)), &settings()).unwrap();
        assert_eq!(refusal.reason, Reason::CheckFailed);
        let unreadable = Unreadable { why: "too deep".into(), metadata: ObjectMeta::default(), status: None };
        assert_eq!(told_of(&Readable(Err(unreadable))).failing, 1);
    }

    #[test]
    fn metrics_tell_what_is_not_tolerated() {
        let mut diagnosis = failing_with(Check::NotRoot);
        let all = |diagnosis: &Readable<Diagnosis>| (told_of(diagnosis).failing, told_of(diagnosis).not_seen);
        assert_eq!(all(&diagnosis), (1, 0));
        diagnosis.0.as_mut().unwrap().status.as_mut().unwrap().checks[0].verdict = CheckVerdict::NotSeen;
        assert_eq!(all(&diagnosis), (0, 1));
        diagnosis.0.as_mut().unwrap().spec.tolerated = vec![Check::NotRoot];
        assert_eq!(all(&diagnosis), (0, 0));
    }

    #[test]
    fn what_fails_is_a_change_and_when_it_was_looked_at_is_none() {
        let mut looked_at_again = failing_with(Check::NotRoot);
        let before = what_matters(&looked_at_again);
        let status = looked_at_again.0.as_mut().unwrap().status.as_mut().unwrap();
        status.checks[0].message = "seen again".into();
        assert_eq!(what_matters(&looked_at_again), before);
        assert_ne!(what_matters(&failing_with(Check::NoToken)), before);
    }
}
