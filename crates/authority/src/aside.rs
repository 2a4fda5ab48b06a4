//! Work for peers, off the runtime's threads.
//!
//! These threads are shared with whatever seals rounds and publishes, first come, first
//! served: what peers ask for, who may ask as often as they like, may never stand before it in
//! great numbers.

use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// So much is done at a time, of a kind: more than there are processors hardly helps.
const AT_A_TIME: usize = 8;

/// One kind of work.
pub(crate) struct Aside(Semaphore);

impl Aside {
    pub(crate) const fn new() -> Self {
        Self(Semaphore::const_new(AT_A_TIME))
    }

    /// Does it once it is its turn, to its end, whoever waits for it.
    ///
    /// # Errors
    /// It panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // Nobody closes it.
        let place = self.0.acquire().await.ok();
        tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Condvar, Mutex};

    /// Those that are at work, and the most that ever were.
    type Busy = (Mutex<(usize, usize)>, Condvar);

    #[tokio::test(flavor = "multi_thread")]
    async fn as_many_are_at_work_as_may_be_and_no_more() {
        static ASIDE: Aside = Aside::new();
        let busy = Arc::<Busy>::default();
        let work = |busy: Arc<Busy>| {
            let (count, changed) = &*busy;
            let mut now = count.lock().unwrap();
            now.0 += 1;
            now.1 = now.1.max(now.0);
            changed.notify_all();
            // The first stay until all places are taken.
            let mut now = changed
                .wait_while(now, |(_, most)| *most < AT_A_TIME)
                .unwrap();
            now.0 -= 1;
        };
        let all: Vec<_> = (0..20 * AT_A_TIME)
            .map(|_| {
                let busy = Arc::clone(&busy);
                tokio::spawn(ASIDE.run(move || work(busy)))
            })
            .collect();
        for one in all {
            one.await.unwrap().unwrap();
        }
        assert_eq!(*busy.0.lock().unwrap(), (0, AT_A_TIME));
        ASIDE.run(|| panic!("as a fault would")).await.unwrap_err();
        assert_eq!(ASIDE.0.available_permits(), AT_A_TIME);
    }
}
