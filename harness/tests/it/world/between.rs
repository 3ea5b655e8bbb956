//! What stands between a client and etcd: it can cut a connection in the middle of a fork, and keep
//! back what etcd's watch has to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
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

/// One connection of a client, with a connection to etcd of its own. Ends when either does, or with the cut.
async fn carry(client: UnixStream, server: UnixStream, state: Arc<State>) {
    let Ok((to_etcd, etcd)) = h2::client::handshake(server).await else { return };
    let Ok(mut requests) = h2::server::handshake(client).await else { return };
    let (cut, mut is_cut) = tokio::sync::mpsc::channel(1);
    let mut streams = tokio::task::JoinSet::new();
    streams.spawn(async { drop(etcd.await) });
    loop {
        let request = tokio::select! {
            request = requests.accept() => request,
            // The client is told nothing but that the connection has ended.
            _ = is_cut.recv() => return,
        };
        let Some(Ok((request, answer))) = request else { break };
        let (to_etcd, state, cut) = (to_etcd.clone(), state.clone(), cut.clone());
        streams.spawn(async move {
            if let Err(error) = stream(request, answer, to_etcd, &state, &cut).await {
                println!("between: {error:#}");
                let _ = cut.send(()).await;
            }
        });
    }
}

async fn stream(
    request: http::Request<h2::RecvStream>,
    mut answer: h2::server::SendResponse<Bytes>,
    to_etcd: h2::client::SendRequest<Bytes>,
    state: &State,
    cut: &tokio::sync::mpsc::Sender<()>,
) -> Result<()> {
    let (head, mut asked) = request.into_parts();
    let (is_txn, is_watch) =
        (head.uri.path() == "/etcdserverpb.KV/Txn", head.uri.path() == "/etcdserverpb.Watch/Watch");
    let is_last = is_txn
        && state.armed.load(Ordering::SeqCst)
        && state
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |it| it.checked_sub(1))
            .is_err();
    let mut to_etcd = to_etcd.ready().await?;
    let (answered, mut ask) = to_etcd.send_request(http::Request::from_parts(head, ()), false)?;
    let questions = async {
        while let Some(data) = asked.data().await {
            let data = data?;
            asked.flow_control().release_capacity(data.len())?;
            // etcd may have answered without waiting for the end, and listens no longer.
            let _ = ask.send_data(data, false);
        }
        let _ = ask.send_data(Bytes::new(), true);
        anyhow::Ok(())
    };
    let mut held = state.watches_held.subscribe();
    let answers = async {
        let (head, mut body) = answered.await?.into_parts();
        if is_last {
            // It reached etcd, which may have carried it out; but nobody hears of it.
            state.armed.store(false, Ordering::SeqCst);
            cut.send(()).await?;
            return Ok(());
        }
        let mut answer = answer.send_response(http::Response::from_parts(head, ()), false)?;
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            if is_watch {
                held.wait_for(|held| !held).await?;
            }
            answer.send_data(data, false)?;
        }
        answer.send_trailers(body.trailers().await?.unwrap_or_default())?;
        anyhow::Ok(())
    };
    let mut broken = state.watches_broken.subscribe();
    let both = async { futures::try_join!(questions, answers).map(drop) };
    let broken = async { broken.wait_for(|broken| *broken).await.map(drop) };
    tokio::select! {
        done = both => done?,
        _ = broken, if is_watch => cut.send(()).await?,
    }
    Ok(())
}
