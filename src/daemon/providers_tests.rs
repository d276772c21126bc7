//! Providers that are halted.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use super::driver::Event;
use super::providers::Providers;
use crate::store::{Kek, Options, Store};

#[tokio::test]
async fn the_schedule_hears_that_a_provider_is_halted_before_the_disk_has_taken_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Options {
        dir: dir.path().into(),
        kek: Kek::generate(),
        busy_timeout: Duration::from_secs(1),
    });
    let (driver, mut inbox) = tokio::sync::mpsc::unbounded_channel();
    let providers = Providers::new(store.unwrap(), driver, BTreeMap::new());
    let mut paused = std::pin::pin!(providers.pause("acme"));
    let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
    let _ = paused.as_mut().poll(&mut nobody);
    assert!(providers.state("acme").unwrap().paused);
    let told = inbox.try_recv();
    assert!(matches!(told, Ok(Event::ProvidersChanged { .. })));
}
