//! Tickets: whether a delivery has begun in this process.
//!
//! A delivery to the process's own JavaScript waits until that turns. Where it does not turn, the worker withdraws
//! the delivery and hands its job back. When the event loop turns again, a delivery that was withdrawn must not
//! begin: it has run elsewhere by then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// On its way, perhaps to another process: it cannot be withdrawn.
const SENT: u8 = 0;
/// It waits for this process's JavaScript.
const WAITING: u8 = 1;
const BEGUN: u8 = 2;
const WITHDRAWN: u8 = 3;

/// Names this process among all that may get a delivery.
static PROCESS: LazyLock<String> = LazyLock::new(|| format!("{:032x}", rand::random::<u128>()));
static NEXT: AtomicU64 = AtomicU64::new(0);
static HELD: LazyLock<Mutex<HashMap<String, Ticket>>> = LazyLock::new(Mutex::default);

/// The default one belongs to no delivery of ours, and is sent to nobody.
#[derive(Clone, Debug, Default)]
pub struct Ticket {
    id: Arc<str>,
    state: Arc<AtomicU8>,
}

/// Known to [`begin`] until it is dropped.
#[derive(Debug)]
pub struct HeldTicket(Ticket);

impl HeldTicket {
    pub fn issue() -> Self {
        let id = format!("{}-{}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed));
        let ticket = Ticket { id: id.as_str().into(), state: Arc::default() };
        held().insert(id, ticket.clone());
        Self(ticket)
    }

    pub fn ticket(&self) -> &Ticket {
        &self.0
    }
}

impl Drop for HeldTicket {
    fn drop(&mut self) {
        held().remove(&*self.0.id);
    }
}

impl Ticket {
    pub fn id(&self) -> Option<&str> {
        (!self.id.is_empty()).then_some(&*self.id)
    }

    /// The delivery goes to this very process.
    pub fn stays_here(&self) {
        self.change(SENT, WAITING);
    }

    pub fn has_begun(&self) -> bool {
        self.state.load(Ordering::Acquire) == BEGUN
    }

    /// Whether the delivery had not begun, and never will.
    pub fn withdraw(&self) -> bool {
        self.change(WAITING, WITHDRAWN)
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The delivery is about to begin here. False: it was withdrawn, or its worker has given it back.
pub fn begin(id: &str) -> bool {
    if !id.starts_with(&**PROCESS) {
        return true;
    }
    let ticket = held().get(id).cloned();
    ticket.is_some_and(|ticket| {
        ticket.change(SENT, BEGUN) || ticket.change(WAITING, BEGUN) || ticket.has_begun()
    })
}

fn held() -> MutexGuard<'static, HashMap<String, Ticket>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_here_is_withdrawn_and_does_not_begin_then() {
        let [sent, waiting, begun] = [(); 3].map(|()| HeldTicket::issue());
        waiting.ticket().stays_here();
        begun.ticket().stays_here();
        assert!(begin(begun.ticket().id().unwrap()));
        assert_eq!([&sent, &waiting, &begun].map(|held| held.ticket().withdraw()), [false, true, false]);
        assert!(!begin(waiting.ticket().id().unwrap()));
        assert!(begin(sent.ticket().id().unwrap()));
        let id = sent.ticket().id().unwrap().to_owned();
        drop(sent);
        assert!(!begin(&id), "its worker holds it no more");
        assert!(begin("another process's"));
        assert_eq!(Ticket::default().id(), None);
    }
}
