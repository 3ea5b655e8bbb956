//! What stands between a client and etcd: it can cut a connection in the middle of a fork, and keep
//! back what etcd's watch has to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

pub(crate) struct Between {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    armed: AtomicBool,
    left: AtomicUsize,
    watches_held: watch::Sender<bool>,
    watches_broken: watch::Sender<bool>,
}

impl Between {
    pub(crate) fn start(path: &Path, etcd: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let state = Arc::new(State::default());
        let accepting = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&etcd).await else { return };
                tokio::spawn(carry(client, server, accepting.clone()));
            }
        });
        Ok(Self { state })
    }

    /// Carries so many transactions of a fork, and answers no further one.
    pub(crate) fn cut_after(&self, transactions: usize) {
        self.state.left.store(transactions, Ordering::SeqCst);
        self.state.armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_cut(&self) -> bool {
        !self.state.armed.load(Ordering::SeqCst)
    }

    /// Breaks all watches that are open, and from now on, or no longer, refuses new ones.
    pub(crate) fn break_watches(&self, broken: bool) {
        self.state.watches_broken.send_replace(broken);
    }

    /// From now on, or no longer, keeps back what etcd sends to watches.
    pub(crate) fn hold_watches(&self, held: bool) {
        self.state.watches_held.send_replace(held);
    }
}

/// Requests are small and sent one at a time, so each is counted where its head comes by.
async fn carry(client: UnixStream, server: UnixStream, state: Arc<State>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let is_watch = Arc::new(AtomicBool::new(false));
    let (watches, mut held) = (is_watch.clone(), state.watches_held.subscribe());
    let answers = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            if watches.load(Ordering::SeqCst) && held.wait_for(|held| !held).await.is_err() {
                return;
            }
            if to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        let request = &buffer[..read];
        if request.starts_with(b"POST /v3/watch") {
            is_watch.store(true, Ordering::SeqCst);
            let (mut broken, answers) = (state.watches_broken.subscribe(), answers.abort_handle());
            tokio::spawn(async move {
                // With it goes the half of the connection that it writes to, and the client is told.
                if broken.wait_for(|broken| *broken).await.is_ok() {
                    answers.abort();
                }
            });
        }
        if request.starts_with(b"POST /v3/kv/txn") && state.armed.load(Ordering::SeqCst) {
            if state.left.load(Ordering::SeqCst) == 0 {
                // It reaches etcd, which may carry it out; but nobody hears of it.
                answers.abort();
                let _ = to_server.write_all(request).await;
                state.armed.store(false, Ordering::SeqCst);
                return;
            }
            state.left.fetch_sub(1, Ordering::SeqCst);
        }
        if to_server.write_all(request).await.is_err() {
            break;
        }
    }
    answers.abort();
}
