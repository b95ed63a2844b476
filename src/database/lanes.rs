//! How many statements of a kind are under way at a time: one, so that what comes meanwhile goes together
//! in the next, with one round trip and one commit. Where that one takes long, because the server is far
//! away, its disk slow or a row locked, others go beside it.

use std::time::Duration;

use tokio::time::timeout;

/// Statements on the same machine have ended by then.
const LONG: Duration = Duration::from_millis(2);
const MOST: usize = 4;

pub struct Lanes {
    always: usize,
    busy: usize,
    long: usize,
}

impl Lanes {
    /// `always`: so many may be under way however long they take.
    pub fn new(always: usize) -> Self {
        Self { always, busy: 0, long: 0 }
    }

    /// Whether one more may begin; it then counts until it has left.
    pub fn enter(&mut self) -> bool {
        let free = self.busy < self.always || self.busy < (self.always + self.long).min(MOST);
        self.busy += usize::from(free);
        free
    }

    pub fn leave(&mut self) {
        self.busy -= 1;
    }
}

/// Ends the count of a statement that takes long, also where that panics.
struct Long<L: Fn(&dyn Fn(&mut Lanes))>(L);

impl<L: Fn(&dyn Fn(&mut Lanes))> Drop for Long<L> {
    fn drop(&mut self) {
        (self.0)(&|lanes| lanes.long -= 1);
    }
}

/// Carries a statement of a lane out. `lanes` locks what holds them, `more` begins another lane if it may enter.
pub async fn carry_out<T>(
    statement: impl Future<Output = T>,
    lanes: impl Fn(&dyn Fn(&mut Lanes)),
    more: impl FnOnce(),
) -> T {
    tokio::pin!(statement);
    if let Ok(outcome) = timeout(LONG, &mut statement).await {
        return outcome;
    }
    lanes(&|lanes| lanes.long += 1);
    let _long = Long(lanes);
    more();
    statement.await
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::time::sleep;

    use super::*;

    #[test]
    fn what_comes_while_a_statement_is_under_way_waits_for_its_end() {
        let mut lanes = Lanes::new(1);
        assert!(lanes.enter());
        assert!(!lanes.enter());
        lanes.leave();
        assert!(lanes.enter());
    }

    #[tokio::test(start_paused = true)]
    async fn beside_one_that_takes_long_others_may_begin_but_not_any_number() {
        let lanes = Rc::new(RefCell::new(Lanes::new(1)));
        let begun = Rc::new(RefCell::new(0));
        assert!(lanes.borrow_mut().enter());
        let long = carry_out(
            sleep(LONG * 10),
            |change| change(&mut lanes.borrow_mut()),
            || {
                while lanes.borrow_mut().enter() {
                    *begun.borrow_mut() += 1;
                    lanes.borrow_mut().long += 1;
                }
            },
        );
        long.await;
        assert_eq!(*begun.borrow(), MOST - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_statement_makes_room_for_none() {
        let lanes = Rc::new(RefCell::new(Lanes::new(1)));
        assert!(lanes.borrow_mut().enter());
        let short = carry_out(
            sleep(LONG / 2),
            |change| change(&mut lanes.borrow_mut()),
            || unreachable!("no other lane begins"),
        );
        short.await;
        assert!(!lanes.borrow_mut().enter());
    }
}
