//! Waiting for the operator.

/// Completes when the process is asked to stop: Ctrl-C or SIGTERM.
pub(crate) async fn stop_requested() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut stream) => {
                stream.recv().await;
            }
            // Without a handler the default ends the process: nothing to wait for.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}

/// SIGHUP, by which an operator has files read again.
pub(crate) struct Hangups(tokio::signal::unix::Signal);

impl Hangups {
    /// From now on a hangup no longer ends the process.
    pub(crate) fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::hangup()).map(Self)
    }

    /// Completes at the next one.
    pub(crate) async fn next(&mut self) {
        // It ends only with the runtime.
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}
