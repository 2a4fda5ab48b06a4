//! Several questions at a time, without a task for each.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Futures under way. Those that are not done are dropped with it.
pub(crate) struct Race<F> {
    runners: Vec<Option<Pin<Box<F>>>>,
}

impl<F: Future> Race<F> {
    pub(crate) fn new(futures: impl Iterator<Item = F>) -> Self {
        Self {
            runners: futures.map(|future| Some(Box::pin(future))).collect(),
        }
    }

    /// The next that is done, and its place; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<(usize, F::Output)> {
        poll_fn(|cx| {
            let mut is_over = true;
            for (place, runner) in self.runners.iter_mut().enumerate() {
                let Some(future) = runner else { continue };
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    *runner = None;
                    return Poll::Ready(Some((place, output)));
                }
                is_over = false;
            }
            match is_over {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        })
        .await
    }
}
