use paddock_crds::{PolicyKind, PolicyRef};
use rstest::rstest;

use super::super::queue::{Full, Place};
use super::*;

const LIMITS: QueueLimits =
    QueueLimits { concurrent: 1, queued: 10, policy_concurrent: None, policy_queued: None, weight: 100, suspended: false };
const CLUSTER: ClusterLimits = ClusterLimits { concurrent: 100, queued: 100 };
const WAIT: Admission = Admission::Wait { full: Full::Tenant, ahead: 0 };

fn entry(namespace: &str, uid: &str, place: Option<Place>) -> Entry {
    let policy = PolicyRef { kind: PolicyKind::ClusterSandboxPolicy, name: "baseline".into() };
    let turn = Turn { arrived: 0, uid: uid.into(), name: uid.into() };
    Entry { namespace: namespace.into(), policy, turn, place, served: None }
}

fn reserve(ledger: &Ledger, namespace: &str, uid: &str) -> Admission {
    ledger.reserve(entry(namespace, uid, None), LIMITS, CLUSTER, |_| (), |_, _| LIMITS, 0)
}

#[test]
fn a_stale_view_does_not_give_a_slot_twice() {
    let ledger = Ledger::default();
    assert_eq!(reserve(&ledger, "ns", "a"), Admission::Admit);
    assert_eq!(reserve(&ledger, "ns", "a"), Admission::Admit, "it has it");
    assert_eq!(reserve(&ledger, "ns", "b"), WAIT);
    assert_eq!(reserve(&ledger, "other", "c"), Admission::Admit);
    // What the watch shows of a time before does not take the slot back.
    ledger.show(entry("ns", "a", Some(Place::Waits)));
    ledger.show(entry("ns", "a", None));
    assert_eq!(reserve(&ledger, "ns", "b"), WAIT);
    ledger.forget("a");
    assert_eq!(reserve(&ledger, "ns", "b"), Admission::Admit);
}

#[test]
fn what_is_forgotten_and_still_shown_holds_its_slot() {
    let ledger = Ledger::default();
    assert_eq!(reserve(&ledger, "ns", "a"), Admission::Admit);
    ledger.show(entry("ns", "a", Some(Place::Active)));
    ledger.forget("a");
    assert_eq!(reserve(&ledger, "ns", "b"), WAIT);
    ledger.show(entry("ns", "a", None));
    assert_eq!(reserve(&ledger, "ns", "b"), Admission::Admit);
}

#[test]
fn a_list_that_does_not_show_a_run_ends_it_for_the_queue() {
    let ledger = Ledger::default();
    ledger.show(entry("ns", "a", Some(Place::Active)));
    ledger.show(entry("ns", "b", Some(Place::Waits)));
    ledger.list_begins();
    ledger.show(entry("ns", "b", Some(Place::Waits)));
    assert_eq!(reserve(&ledger, "ns", "b"), WAIT, "the list is not complete");
    assert_eq!(ledger.list_ends(), ["a".to_owned()].into());
    assert_eq!(ledger.heads("ns"), ["b"]);
    assert_eq!(reserve(&ledger, "ns", "b"), Admission::Admit);
    assert!(ledger.heads("ns").is_empty(), "it has a slot");
    assert_eq!(ledger.forget_all_but(&HashSet::new()), ["ns".to_owned()].into());
    assert_eq!(ledger.heads("ns"), ["b"], "it is shown as one that waits");
}

#[test]
fn a_pod_whose_run_is_not_known_takes_a_slot() {
    let ledger = Ledger::default();
    let living =
        |each: &mut dyn FnMut(LivingPod<'_>)| each(LivingPod { namespace: "ns", run_uid: "gone", policy: "ClusterSandboxPolicy/baseline" });
    let ask = |namespace: &str| ledger.reserve(entry(namespace, "b", None), LIMITS, CLUSTER, living, |_, _| LIMITS, 0);
    assert_eq!(ask("ns"), WAIT);
    assert_eq!(ask("other"), Admission::Admit);
    let only_one = ClusterLimits { concurrent: 1, queued: 100 };
    let admission = ledger.reserve(entry("third", "d", None), LIMITS, only_one, living, |_, _| LIMITS, 0);
    assert_eq!(admission, Admission::Wait { full: Full::Cluster, ahead: 0 });
}

#[test]
fn a_pod_whose_run_is_not_known_counts_for_the_policy_that_its_run_named() {
    let roomy = QueueLimits { concurrent: 9, policy_concurrent: Some(1), ..LIMITS };
    let ask = |policy: &'static str| {
        let living = |each: &mut dyn FnMut(LivingPod<'_>)| each(LivingPod { namespace: "ns", run_uid: "gone", policy });
        Ledger::default().reserve(entry("ns", "b", None), roomy, CLUSTER, living, |_, _| roomy, 0)
    };
    assert_eq!(ask("ClusterSandboxPolicy/baseline"), Admission::Wait { full: Full::Policy, ahead: 0 });
    for other in ["ClusterSandboxPolicy/other", "SandboxPolicy/baseline", "baseline", ""] {
        assert_eq!(ask(other), Admission::Admit, "{other}");
    }
    assert_eq!(policy_text(&entry("ns", "b", None).policy), "ClusterSandboxPolicy/baseline");
}

#[test]
fn a_run_whose_pod_lives_has_its_slot() {
    let ledger = Ledger::default();
    let living = |each: &mut dyn FnMut(LivingPod<'_>)| each(LivingPod { namespace: "ns", run_uid: "b", policy: "" });
    assert_eq!(ledger.reserve(entry("ns", "b", None), LIMITS, CLUSTER, living, |_, _| LIMITS, 0), Admission::Admit);
    assert_eq!(reserve(&ledger, "ns", "c"), WAIT);
}

#[test]
fn nobody_waits_behind_a_run_whose_passes_fail() {
    let ledger = Ledger::default();
    ledger.show(entry("ns", "a", Some(Place::Waits)));
    let younger = || Entry { turn: Turn { arrived: 9, uid: "b".into(), name: "b".into() }, ..entry("ns", "b", None) };
    let ask = |entry: Entry| ledger.reserve(entry, LIMITS, CLUSTER, |_| (), |_, _| LIMITS, 0);
    assert_eq!(ask(younger()), Admission::Wait { full: Full::Tenant, ahead: 1 });
    ledger.stand_aside("a");
    // What the watch shows of it does not put it back; its own next pass does.
    ledger.show(entry("ns", "a", Some(Place::Waits)));
    assert_eq!(ledger.heads("ns"), ["b"], "it was told to wait, and counts");
    assert_eq!(reserve(&ledger, "ns", "a"), Admission::Admit);
    assert_eq!(ask(younger()), Admission::Wait { full: Full::Tenant, ahead: 0 });
}

#[test]
fn who_was_told_to_wait_counts_before_it_is_stored() {
    let ledger = Ledger::default();
    let few = QueueLimits { queued: 2, ..LIMITS };
    let ask = |uid: &str| ledger.reserve(entry("ns", uid, None), few, CLUSTER, |_| (), |_, _| few, 0);
    assert_eq!(ask("a"), Admission::Admit);
    assert_eq!((ask("b"), ask("c")), (WAIT, Admission::Wait { full: Full::Tenant, ahead: 1 }));
    assert_eq!(ask("d"), Admission::Refuse(Full::Tenant));
    ledger.hide("b");
    assert!(matches!(ask("d"), Admission::Wait { .. }));
}

#[test]
fn who_waits_for_approvals_is_counted_and_in_nobodys_way() {
    let ledger = Ledger::default();
    ledger.show(entry("ns", "a", Some(Place::Awaits)));
    ledger.show(entry("ns", "b", Some(Place::Awaits)));
    let is_let = |namespace: &str, uid: &str, most| ledger.await_approvals(entry(namespace, uid, None), most);
    assert!(is_let("ns", "a", 2) && !is_let("ns", "c", 2) && is_let("other", "x", 1), "who waits already is not counted");
    assert_eq!(reserve(&ledger, "ns", "c"), Admission::Admit);
    ledger.show(entry("ns", "a", Some(Place::Waits)));
    assert_eq!(ledger.heads("ns"), ["a"]);
    assert!(is_let("ns", "d", 2) && !is_let("ns", "e", 2), "each that is let is counted before its status is seen");
    ledger.hide("b");
    assert!(is_let("ns", "e", 2));
}

/// A pass may hold a run that is gone: what it claims for it goes with the write that fails, whatever that fails by, or with the next look at all runs.
#[rstest]
#[case::gone(|ledger: &Ledger, uid: &str| ledger.stand_aside(uid))]
#[case::another_of_that_name(|ledger: &Ledger, uid: &str| ledger.give_up_the_claim(uid))]
#[case::forgotten(|ledger: &Ledger, uid: &str| ledger.forget(uid))]
#[case::nobody_wrote(|ledger: &Ledger, _: &str| _ = ledger.forget_all_but(&HashSet::from(["a".to_owned()])))]
#[case::a_list_without_it(|ledger: &Ledger, _: &str| {
    ledger.list_begins();
    ledger.show(entry("ns", "a", Some(Place::Active)));
    ledger.list_ends();
})]
fn a_run_that_is_gone_leaves_no_place_behind(#[case] ends: fn(&Ledger, &str)) {
    let ledger = Ledger::default();
    let one = QueueLimits { concurrent: 1, queued: 1, ..LIMITS };
    let ask = |uid: &str| ledger.reserve(entry("ns", uid, None), one, CLUSTER, |_| (), |_, _| one, 0);
    ledger.show(entry("ns", "a", Some(Place::Active)));
    ledger.hide("gone");
    assert!(matches!(ask("gone"), Admission::Wait { .. }));
    assert_eq!(ask("b"), Admission::Refuse(Full::Tenant), "it has the only place");
    ends(&ledger, "gone");
    assert!(matches!(ask("b"), Admission::Wait { ahead: 0, .. }), "and leaves it");
    ledger.hide("lost");
    assert!(ledger.await_approvals(entry("ns", "lost", None), 1) && !ledger.await_approvals(entry("ns", "c", None), 1));
    ends(&ledger, "lost");
    assert!(ledger.await_approvals(entry("ns", "c", None), 1));
}

/// Many that wait in line can need an approval at once, by a policy that changes.
#[test]
fn who_waited_in_line_is_counted_among_those_that_wait_for_approvals() {
    let ledger = Ledger::default();
    for uid in ["a", "b", "c"] {
        ledger.show(entry("ns", uid, Some(Place::Waits)));
    }
    let is_let = ["a", "b", "c"].map(|uid| ledger.await_approvals(entry("ns", uid, Some(Place::Waits)), 2));
    assert_eq!((is_let, ledger.heads("ns")), ([true, true, false], vec!["c".to_owned()]));
}

/// The watch shows for a moment what was before.
#[test]
fn who_stood_back_has_its_new_place_at_once() {
    let ledger = Ledger::default();
    let one = QueueLimits { concurrent: 1, ..LIMITS };
    let ask = |uid: &str| ledger.reserve(entry("ns", uid, None), one, CLUSTER, |_| (), |_, _| one, 0);
    assert_eq!(ask("a"), Admission::Admit);
    ledger.show(entry("ns", "a", Some(Place::Active)));
    ledger.stand_back(entry("ns", "a", Some(Place::StandsAside)));
    assert_eq!(ask("b"), Admission::Admit, "the slot is free");
    ledger.show(entry("ns", "a", Some(Place::StandsAside)));
    ledger.forget("b");
    ledger.hide("a");
    assert!(ask("c") == Admission::Admit && matches!(ask("d"), Admission::Wait { .. }));
}
