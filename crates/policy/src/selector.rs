//! Label selectors. An operator that is not known selects nothing and everything: the caller must refuse.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Whether `selector` selects `labels`; `Err` for an expression that is not understood.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Result<bool, String> {
    let labels_match = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let mut all = labels_match;
    for expression in selector.match_expressions.iter().flatten() {
        let value = labels.get(&expression.key);
        let values = expression.values.as_deref().unwrap_or_default();
        all &= match expression.operator.as_str() {
            "In" => value.is_some_and(|value| values.contains(value)),
            "NotIn" => value.is_none_or(|value| !values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => return Err(format!("unknown operator {other:?} in a label selector")),
        };
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
    use rstest::rstest;

    use super::*;

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        let values = Some(values.iter().map(|value| (*value).to_owned()).collect());
        let requirement = LabelSelectorRequirement { key: "tier".into(), operator: operator.into(), values };
        LabelSelector { match_expressions: Some(vec![requirement]), match_labels: None }
    }

    #[rstest]
    #[case(LabelSelector::default(), true)]
    #[case(expression("In", &["gold"]), true)]
    #[case(expression("In", &["silver"]), false)]
    #[case(expression("NotIn", &["silver"]), true)]
    #[case(expression("Exists", &[]), true)]
    #[case(expression("DoesNotExist", &[]), false)]
    #[case(LabelSelector { match_labels: Some([("tier".into(), "silver".into())].into()), match_expressions: None }, false)]
    fn matches(#[case] selector: LabelSelector, #[case] expected: bool) {
        assert_eq!(selects(&selector, &[("tier".to_owned(), "gold".to_owned())].into()), Ok(expected));
    }

    #[test]
    fn an_unknown_operator_is_an_error() {
        assert!(selects(&expression("Near", &["gold"]), &BTreeMap::new()).is_err());
    }
}
