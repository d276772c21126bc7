//! What the daemon's files know as tokio, in virtual time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use real_tokio::sync::oneshot;

use crate::executor::sim;

/// Runs `work` as a task of whoever runs now.
pub(crate) fn spawn<T: 'static>(work: impl Future<Output = T> + 'static) -> task::JoinHandle<T> {
    let (done, ended) = oneshot::channel();
    let sim = sim();
    sim.spawn(sim.owner(), async move {
        let _ = done.send(work.await);
    });
    task::JoinHandle(ended)
}

pub(crate) mod time {
    use super::*;
    use std::time::Duration;

    pub(crate) struct Elapsed;

    pub(crate) fn sleep(length: Duration) -> crate::executor::Sleep {
        sim().sleep(length)
    }

    pub(crate) async fn timeout<T>(
        patience: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let (mut work, mut sleep) = (std::pin::pin!(work), sleep(patience));
        std::future::poll_fn(|context| {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            Pin::new(&mut sleep).poll(context).map(|()| Err(Elapsed))
        })
        .await
    }
}

pub(crate) mod task {
    use super::*;
    use real_tokio::sync::mpsc;

    /// The task is gone. A panic is everybody's here.
    #[derive(Debug)]
    pub(crate) struct JoinError;

    impl JoinError {
        pub(crate) fn into_panic(self) -> Box<dyn std::any::Any + Send> {
            Box::new("the task is gone")
        }
    }

    pub(crate) struct JoinHandle<T>(pub(super) oneshot::Receiver<T>);

    impl<T> Future for JoinHandle<T> {
        type Output = Result<T, JoinError>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            let polled = Pin::new(&mut self.0).poll(context);
            polled.map(|done| done.map_err(|_| JoinError))
        }
    }

    pub(crate) struct JoinSet<T> {
        done: mpsc::UnboundedSender<T>,
        ended: mpsc::UnboundedReceiver<T>,
        running: usize,
    }

    impl<T: 'static> JoinSet<T> {
        pub(crate) fn new() -> Self {
            let (done, ended) = mpsc::unbounded_channel();
            JoinSet {
                done,
                ended,
                running: 0,
            }
        }

        pub(crate) fn spawn(&mut self, work: impl Future<Output = T> + 'static) {
            self.running += 1;
            let done = self.done.clone();
            super::spawn(async move {
                let _ = done.send(work.await);
            });
        }

        pub(crate) async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
            if self.running == 0 {
                return None;
            }
            self.running -= 1;
            self.ended.recv().await.map(Ok)
        }
    }
}
