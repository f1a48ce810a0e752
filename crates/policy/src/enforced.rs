//! Whether what would confine a run is in force, as far as somebody has looked.

use paddock_crds::{Check, CheckResult, CheckVerdict, DIAGNOSIS, Diagnosis, Reason};

use crate::decide::Refusal;

/// The runs that a check speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concerned {
    Every,
    WithoutNetwork,
    /// Also where every sandbox has an interface.
    WithNetwork,
    /// Under the RuntimeClass of a network, with a token for the gateway.
    Granted,
}

/// One that a newer version has added speaks of everything: what it is about is not known here.
fn concerned(check: &Check) -> Concerned {
    match check {
        Check::SandboxKernel | Check::SandboxInterfaces | Check::SandboxNames => Concerned::WithoutNetwork,
        Check::NetworkPolicyIpv4 | Check::NetworkPolicyIpv6 | Check::NodeConfined | Check::NetworkedNames => Concerned::WithNetwork,
        Check::NetworkedSandbox | Check::GatewayRefuses => Concerned::Granted,
        Check::RequesterStamped
        | Check::StampProtected
        | Check::PodSecurity
        | Check::NotRoot
        | Check::NoToken
        | Check::RootReadOnly
        | Check::DiskLimited
        | Check::MemoryLimited
        | Check::CpuLimited
        | Check::TimeLimited
        | Check::ProcessesEnd
        | Check::Unknown(_) => Concerned::Every,
    }
}

/// What a sandbox has of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// Nothing.
    None,
    /// An interface, and nothing granted: network policies confine it.
    Interface,
    /// The way to the egress gateway.
    Granted,
}

/// What there is to look at in a cluster that has an egress gateway, or whose sandboxes all have an interface.
pub fn expected(has_gateway: bool, has_interface: bool) -> Vec<Check> {
    let is_there = |check: &Check| match concerned(check) {
        Concerned::WithNetwork | Concerned::Granted => has_gateway,
        Concerned::Every | Concerned::WithoutNetwork => !has_interface || *check != Check::SandboxInterfaces,
    };
    Check::ALL.iter().map(|(check, _)| check.clone()).filter(is_there).collect()
}

/// The checks of a diagnosis that nobody has said to tolerate.
fn not_tolerated(diagnosis: &Diagnosis) -> impl Iterator<Item = &CheckResult> {
    let checks = diagnosis.status.iter().flat_map(|status| &status.checks);
    checks.filter(|result| !diagnosis.spec.tolerated.contains(&result.name))
}

/// Of these, those that fail. A verdict of a newer version is no good one.
pub fn failing(diagnosis: &Diagnosis) -> impl Iterator<Item = &CheckResult> {
    not_tolerated(diagnosis).filter(|result| !matches!(result.verdict, CheckVerdict::Holds | CheckVerdict::NotSeen))
}

/// Of these, those that nobody has seen and somebody might have. A limit of CPU is not to be seen on a node that is busy.
pub fn unseen(diagnosis: &Diagnosis) -> impl Iterator<Item = &CheckResult> {
    not_tolerated(diagnosis).filter(|result| result.verdict == CheckVerdict::NotSeen && result.name != Check::CpuLimited)
}

/// Why a run whose sandbox has this of a network is refused, if it depends on a check that fails.
pub fn not_enforced(diagnosis: &Diagnosis, network: SandboxNetwork) -> Option<Refusal> {
    let depends = |result: &&CheckResult| match concerned(&result.name) {
        Concerned::Every => true,
        Concerned::WithoutNetwork => network != SandboxNetwork::Granted,
        Concerned::WithNetwork => network != SandboxNetwork::None,
        Concerned::Granted => network == SandboxNetwork::Granted,
    };
    let failing: Vec<&CheckResult> = failing(diagnosis).filter(depends).collect();
    let first = failing.first()?;
    let more = if failing.len() == 1 { String::new() } else { format!(", and {} more", failing.len() - 1) };
    let message = format!(
        "the check {} of the cluster fails{more}: {}; what was seen is in kubectl get diagnosis {DIAGNOSIS} --output yaml",
        first.name, first.message
    );
    Some(Refusal { reason: Reason::CheckFailed, message })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use paddock_crds::{DiagnosisSpec, DiagnosisStatus};

    use super::*;

    fn diagnosis(checks: &[(Check, CheckVerdict)]) -> Diagnosis {
        let result = |(name, verdict): &(Check, CheckVerdict)| CheckResult {
            name: name.clone(),
            verdict: verdict.clone(),
            message: "seen".into(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let status = DiagnosisStatus { checks: checks.iter().map(result).collect(), ..DiagnosisStatus::default() };
        Diagnosis { status: Some(status), ..Diagnosis::new(DIAGNOSIS, DiagnosisSpec::default()) }
    }

    fn refused(diagnosis: &Diagnosis) -> [bool; 3] {
        [SandboxNetwork::None, SandboxNetwork::Interface, SandboxNetwork::Granted].map(|network| not_enforced(diagnosis, network).is_some())
    }

    #[test]
    fn a_check_refuses_the_runs_that_depend_on_it() {
        let fails = |check| refused(&diagnosis(&[(check, CheckVerdict::Fails)]));
        assert_eq!(fails(Check::MemoryLimited), [true, true, true]);
        assert_eq!(fails(Check::SandboxKernel), [true, true, false]);
        assert_eq!(fails(Check::NetworkPolicyIpv6), [false, true, true]);
        assert_eq!((fails(Check::GatewayRefuses), fails(Check::NetworkedSandbox)), ([false, false, true], [false, false, true]));
        assert_eq!(fails(Check::Unknown("OfANewerVersion".into())), [true, true, true]);
        assert_eq!(refused(&diagnosis(&[(Check::NotRoot, CheckVerdict::Unknown("Wobbles".into()))])), [true, true, true]);
    }

    #[test]
    fn what_holds_was_not_seen_or_is_tolerated_refuses_nothing() {
        assert_eq!(refused(&Diagnosis::new(DIAGNOSIS, DiagnosisSpec::default())), [false; 3]);
        assert_eq!(refused(&diagnosis(&[(Check::NotRoot, CheckVerdict::Holds), (Check::NoToken, CheckVerdict::NotSeen)])), [false; 3]);
        let mut tolerated = diagnosis(&[(Check::CpuLimited, CheckVerdict::Fails)]);
        tolerated.spec.tolerated = vec![Check::CpuLimited];
        assert_eq!(refused(&tolerated), [false; 3]);
    }

    #[test]
    fn what_there_is_to_look_at_goes_by_what_is_installed() {
        let everything = expected(true, false);
        assert_eq!(everything.len(), Check::ALL.len());
        assert_eq!((expected(false, false).len(), expected(true, true).len()), (everything.len() - 6, everything.len() - 1));
    }

    #[test]
    fn what_nobody_has_seen_is_told_unless_nobody_could() {
        let of = |check| diagnosis(&[(check, CheckVerdict::NotSeen)]);
        assert_eq!((unseen(&of(Check::NotRoot)).count(), unseen(&of(Check::CpuLimited)).count()), (1, 0));
        let mut tolerated = of(Check::NotRoot);
        tolerated.spec.tolerated = vec![Check::NotRoot];
        assert_eq!(unseen(&tolerated).count(), 0);
    }

    #[test]
    fn the_refusal_names_the_check_and_what_was_seen() {
        let both = diagnosis(&[(Check::NotRoot, CheckVerdict::Fails), (Check::NoToken, CheckVerdict::Fails)]);
        let refusal = not_enforced(&both, SandboxNetwork::None).unwrap();
        assert_eq!(refusal.reason, Reason::CheckFailed);
        assert!(refusal.message.starts_with("the check NotRoot of the cluster fails, and 1 more: seen; "), "{}", refusal.message);
    }
}
