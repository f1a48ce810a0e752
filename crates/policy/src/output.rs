//! What becomes of what a script puts out, by all policies together.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;

use paddock_crds::{Effect, LargeResult, OutputRules};
use paddock_mask::{Detector, InvalidRule, Masker, Rule};

use crate::Policy;
use crate::bounds::smallest;

const DEFAULT_STREAM: i64 = 16 * 1024;
const DEFAULT_RESULT: i64 = 32 * 1024;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputGrant {
    /// Bytes kept of each stream.
    pub stream_bytes: u32,
    /// Largest result in the status, in bytes.
    pub result_bytes: u32,
    /// What becomes of a larger one.
    pub large_result: LargeResult,
    /// What is looked for.
    pub detectors: BTreeSet<Detector>,
    /// Patterns of the policies.
    pub rules: Vec<Rule>,
    /// Values of the Secrets that the run was given.
    pub secrets: SecretValues,
}

/// Values that are covered wherever they turn up, with the name of their Secret. They are never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretValues(pub Vec<(String, Vec<u8>)>);

impl fmt::Debug for SecretValues {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretValues({})", self.0.len())
    }
}

impl OutputGrant {
    /// What covers by these rules.
    pub fn masker(&self) -> Result<Masker, InvalidRule> {
        Masker::new(self.detectors.clone(), &self.rules, &self.secrets.0)
    }
}

/// Every policy narrows: the smallest sizes, the strictest way with large results, all patterns, and each detector that not every policy turns off.
/// A policy turns a detector off by naming it: one that says nothing keeps them all.
pub fn output_grant(policies: &[impl Borrow<Policy>]) -> OutputGrant {
    let all: Vec<&Policy> = policies.iter().map(Borrow::borrow).collect();
    let policies = all.as_slice();
    let rules = || policies.iter().map(|policy| &policy.rules.output);
    let smallest = |field: fn(&OutputRules) -> Option<i64>, built_in: i64| {
        u32::try_from(smallest(policies, built_in, |policy| field(&policy.rules.output))).unwrap_or_default()
    };
    let is_on =
        |detector: &Detector| !rules().all(|rules| rules.mask.off.iter().any(|off| named(*off) == *detector)) || policies.is_empty();
    let patterns = rules().flat_map(|rules| &rules.mask.rules).map(|rule| Rule { name: rule.name.clone(), pattern: rule.pattern.clone() });
    OutputGrant {
        stream_bytes: smallest(|rules| rules.max_stream_bytes, DEFAULT_STREAM),
        result_bytes: smallest(|rules| rules.max_result_bytes, DEFAULT_RESULT),
        large_result: large_result(policies),
        detectors: Detector::ALL.into_iter().filter(is_on).collect(),
        rules: patterns.collect(),
        secrets: SecretValues::default(),
    }
}

/// The strictest; a policy that allows and says nothing says `Refuse`.
fn large_result(policies: &[&Policy]) -> LargeResult {
    let silence = |policy: &Policy| (policy.effect == Effect::Allow).then_some(LargeResult::Refuse);
    let said = policies.iter().filter_map(|policy| policy.rules.output.large_result.or_else(|| silence(policy)));
    said.min().unwrap_or(LargeResult::Refuse)
}

fn named(detector: paddock_crds::Detector) -> Detector {
    use paddock_crds::Detector as Named;
    match detector {
        Named::CloudKey => Detector::CloudKey,
        Named::ServiceToken => Detector::ServiceToken,
        Named::PrivateKey => Detector::PrivateKey,
        Named::Jwt => Detector::Jwt,
        Named::BearerToken => Detector::BearerToken,
        Named::Password => Detector::Password,
        Named::Email => Detector::Email,
        Named::Iban => Detector::Iban,
        Named::CardNumber => Detector::CardNumber,
    }
}

#[cfg(test)]
mod tests {
    use paddock_crds::{MaskRule, MaskRules, PolicyKind, PolicyRules, TakenPolicy};

    use super::*;
    use LargeResult::{Refuse, Store, Truncate};
    use PolicyKind::{ClusterSandboxPolicy as Cluster, SandboxPolicy as Namespace};

    fn policy(kind: PolicyKind, output: OutputRules) -> Policy {
        let taken = TakenPolicy { kind, name: "p".into(), uid: String::new(), author: None, generation: 1, hash: String::new() };
        let effect = if kind == Cluster { Effect::Allow } else { Effect::Restrict };
        Policy::new(taken, effect, PolicyRules { output, ..PolicyRules::default() })
    }

    fn off(detectors: &[paddock_crds::Detector]) -> OutputRules {
        OutputRules { mask: MaskRules { off: detectors.to_vec(), rules: Vec::new() }, ..OutputRules::default() }
    }

    #[test]
    fn names_of_detectors_are_the_same_in_the_api_and_in_the_output() {
        for detector in paddock_crds::Detector::ALL {
            assert_eq!(serde_json::to_value(detector).unwrap(), named(detector).as_str());
        }
        assert_eq!(paddock_crds::Detector::ALL.len(), Detector::ALL.len());
    }

    #[test]
    fn a_detector_is_off_only_where_all_agree() {
        use paddock_crds::Detector::{Email, Iban};
        let both = output_grant(&[policy(Cluster, off(&[Email, Iban])), policy(Namespace, off(&[Email]))]);
        assert!(!both.detectors.contains(&Detector::Email) && both.detectors.contains(&Detector::Iban));
        assert_eq!(output_grant(&[policy(Cluster, off(&[Email])), policy(Cluster, off(&[]))]).detectors.len(), Detector::ALL.len());
        assert_eq!(output_grant(&[] as &[Policy]).detectors.len(), Detector::ALL.len());
    }

    #[test]
    fn no_namespace_relaxes_what_becomes_of_large_results() {
        let large = |large_result| OutputRules { large_result, ..OutputRules::default() };
        let both = |cluster, namespace| output_grant(&[policy(Cluster, large(cluster)), policy(Namespace, large(namespace))]).large_result;
        assert_eq!(both(None, Some(Store)), Refuse);
        assert_eq!(both(Some(Store), None), Store);
        assert_eq!(both(Some(Store), Some(Truncate)), Truncate);
        assert_eq!(both(Some(Truncate), Some(Store)), Truncate);
    }

    #[test]
    fn sizes_are_the_smallest_and_patterns_are_all() {
        let rules = |bytes, name: &str| OutputRules {
            max_result_bytes: Some(bytes),
            mask: MaskRules { off: Vec::new(), rules: vec![MaskRule { name: name.into(), pattern: "x+".into() }] },
            ..OutputRules::default()
        };
        let grant = output_grant(&[policy(Cluster, rules(1000, "a")), policy(Namespace, rules(2000, "b"))]);
        assert_eq!((grant.result_bytes, grant.stream_bytes, grant.rules.len()), (1000, 16384, 2));
        assert!(grant.masker().is_ok());
        let wide = OutputRules { max_result_bytes: Some(65536), max_stream_bytes: Some(32768), ..OutputRules::default() };
        let grant = output_grant(&[policy(Cluster, OutputRules::default()), policy(Cluster, wide.clone()), policy(Namespace, wide)]);
        assert_eq!((grant.result_bytes, grant.stream_bytes), (32768, 16384), "silence is the built-in value");
        let broken = policy(Cluster, rules(1, "a"));
        let mut broken = output_grant(&[broken]);
        broken.rules[0].pattern = "(?=x)".into();
        assert!(broken.masker().is_err_and(|error| error.to_string().contains("masking rule a")));
    }
}
