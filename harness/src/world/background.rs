//! What goes on without anybody waiting for it, counted so that somebody can.

use tokio::sync::watch;

/// How many tasks are under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Background {
    count: watch::Sender<usize>,
}

/// One task; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Task {
    count: watch::Sender<usize>,
}

impl Background {
    pub(super) fn begin(&self) -> Task {
        self.count.send_modify(|count| *count += 1);
        Task { count: self.count.clone() }
    }

    /// Waits until nothing is under way.
    pub(super) async fn idle(&self) {
        // The sender is our own, so the channel cannot close meanwhile.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.count() == 0
    }

    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}
