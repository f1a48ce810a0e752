//! A watch as a Controller needs it.
//!
//! While a watch that broke lists everything anew, what is listed is not in its store before the list is whole. A Controller that is told of an
//! object meanwhile does not find it there and forgets it, or takes the one of before: whatever changed while the watch was broken would wait for its
//! next change. So it is told of nothing that is listed, and of everything once the list is whole.

use futures::channel::mpsc;
use futures::{Stream, TryStreamExt as _};
use kube::runtime::watcher;

/// What a Controller is to be given by `for_stream`, from a watch whose store is written already, and what by `reconcile_all_on`.
pub(crate) fn for_controller<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
) -> (impl Stream<Item = watcher::Result<K>>, impl Stream<Item = ()>) {
    let (is_whole, whole) = mpsc::unbounded();
    let changed = events.try_filter_map(move |event| {
        std::future::ready(Ok(match event {
            watcher::Event::Apply(object) => Some(object),
            watcher::Event::InitDone => {
                // Without a Controller nobody listens.
                let _ = is_whole.unbounded_send(());
                None
            }
            watcher::Event::Init | watcher::Event::InitApply(_) | watcher::Event::Delete(_) => None,
        }))
    });
    (changed, whole)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt as _;
    use kube::runtime::controller::Action;
    use kube::runtime::watcher::Event;
    use kube::runtime::{Controller, WatchStreamExt as _, reflector};

    use super::*;

    fn object(name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("n".into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_while_the_watch_was_broken_is_reconciled_as_it_is_now() {
        let (watch, events) = mpsc::unbounded::<watcher::Result<Event<ConfigMap>>>();
        let say = |event| watch.unbounded_send(Ok(event)).unwrap();
        let (reader, writer) = reflector::store();
        let (changed, whole) = for_controller(events.reflect(writer));
        let (passed, mut passes) = mpsc::unbounded();
        let reconcile = move |object: Arc<ConfigMap>, passed: Arc<mpsc::UnboundedSender<String>>| async move {
            passed.unbounded_send(format!("{} {}", object.name_any(), object.resource_version().unwrap())).unwrap();
            Ok::<_, std::convert::Infallible>(Action::await_change())
        };
        let controller = Controller::for_stream(changed, reader).reconcile_all_on(whole);
        let controller = controller.run(reconcile, |_, _, _| Action::await_change(), Arc::new(passed));
        tokio::spawn(controller.for_each(|_| std::future::ready(())));

        let mut next = async || tokio::time::timeout(Duration::from_secs(10), passes.next()).await.unwrap().unwrap();
        say(Event::Init);
        say(Event::InitApply(object("old", "1")));
        say(Event::InitDone);
        assert_eq!(next().await, "old 1");
        say(Event::Init);
        say(Event::InitApply(object("old", "2")));
        say(Event::InitApply(object("new", "3")));
        // A page of the list may take its time.
        tokio::time::sleep(Duration::from_secs(1)).await;
        say(Event::InitDone);
        let mut both = [next().await, next().await];
        both.sort();
        assert_eq!(both, ["new 3", "old 2"]);
        say(Event::Apply(object("old", "4")));
        assert_eq!(next().await, "old 4");
    }
}
