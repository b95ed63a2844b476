//! Claims jobs, has them delivered, settles them, and keeps its leases alive.
//!
//! One loop takes turns: each turn is one statement that settles what has ended and claims what there
//! are slots for. While a turn is under way, what ends collects for the next. A second loop keeps
//! time: heartbeats, sweeps, rescues.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::pace::{Paces, Situation};
use super::store::{Action, Claim, Claimed, Push, Pushed, Settlement, Store, Stranded, Turn};
use super::timing::{
    BACKOFF_MAX, CLAIM_AGAIN, HEARTBEAT, LEASE, PURGE, RESCUE, RESCUE_NEXT_PAGE, SWEEP, SWEEP_GAP,
    SWEEP_WITHOUT_LISTEN, backoff, retry_delay,
};
use super::{Deliver, Delivery, Kind, Level, Log, Message, Outcome};
use crate::config::QueueConfig;
use crate::error::{Error, Result};
use crate::ids::new_message_id;

/// How long `close` tries to give jobs back; after that their leases run out.
const GIVE_BACK: Duration = Duration::from_secs(2);

pub struct Worker {
    store: Arc<Store>,
    deliver: Arc<dyn Deliver>,
    log: Arc<dyn Log>,
    namespace: Option<String>,
    state: Mutex<State>,
    /// The turns look again.
    wake: Notify,
    /// Leases are held where none were.
    beat: Notify,
    /// Something has ended.
    ended: Notify,
    counters: Counters,
    tasks: Mutex<Vec<AbortHandle>>,
}

struct State {
    slots: [Slots; 2],
    running: HashMap<Claim, Running>,
    settlements: Vec<Settlement>,
    gate: Gate,
    closing: bool,
    paces: Paces,
    /// When PostgreSQL last failed us: the leases of others may have suffered from the same.
    trouble: Option<Instant>,
}

struct Slots {
    capacity: usize,
    free: usize,
    /// Jobs may be waiting to be claimed.
    backlog: bool,
    /// Counts what spoke for a backlog, so that a claim under way does not clear what it cannot have seen.
    signals: u64,
    /// When the next job will be due.
    next: Option<Instant>,
}

struct Running {
    group: String,
    since: Instant,
    /// `None` while it is being started.
    task: Option<AbortHandle>,
    /// What became of it is being written.
    settling: bool,
    /// Another worker has the job by now.
    lost: bool,
}

/// What follows from the end of a delivery for a wake that was held back.
enum Pacing {
    Wake(Push),
    Pause { run: String, pause: Duration },
}

impl Running {
    /// Whether a turn to come will settle it, and look what waits for the same run.
    fn will_settle(&self, group: &str) -> bool {
        self.group == group && !self.settling
    }
}

/// Deliveries go out only while the target takes them.
struct Gate {
    open: bool,
    /// How often in a row it turned out to be closed.
    closings: u32,
}

#[derive(Default)]
struct Counters {
    deliveries: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    rescheduled: AtomicU64,
    unreachable: AtomicU64,
    lost: AtomicU64,
    swept: AtomicU64,
    rescued: AtomicU64,
    claimed_at_once: AtomicU64,
}

/// What a worker does and did.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Whether the target takes deliveries.
    pub target_ready: bool,
    /// Whether notifications arrive; without them the worker polls.
    pub listening: bool,
    pub running_flows: usize,
    pub running_steps: usize,
    pub capacity: usize,
    pub deliveries: u64,
    pub completed: u64,
    pub failed: u64,
    pub rescheduled: u64,
    /// Deliveries that nobody took; no attempt was spent.
    pub unreachable: u64,
    /// Leases that others took over while the delivery ran on.
    pub leases_lost: u64,
    /// Jobs of dead workers that this one gave back.
    pub leases_swept: u64,
    /// Runs without a message that were woken.
    pub runs_rescued: u64,
    /// Jobs that were claimed as they were inserted.
    pub claimed_at_once: u64,
}

impl Worker {
    pub fn start(
        store: Arc<Store>,
        config: &QueueConfig,
        deliver: Arc<dyn Deliver>,
        log: Arc<dyn Log>,
    ) -> Arc<Self> {
        let capacity = config.concurrency as usize;
        let slots = || Slots { capacity, free: capacity, backlog: true, signals: 0, next: None };
        let worker = Arc::new(Self {
            store,
            deliver,
            log,
            namespace: config.namespace.clone(),
            state: Mutex::new(State {
                slots: [slots(), slots()],
                running: HashMap::new(),
                settlements: Vec::new(),
                gate: Gate { open: false, closings: 0 },
                closing: false,
                paces: Paces::default(),
                trouble: None,
            }),
            wake: Notify::new(),
            beat: Notify::new(),
            ended: Notify::new(),
            counters: Counters::default(),
            tasks: Mutex::default(),
        });
        worker.spawn(Arc::clone(&worker).take_turns());
        worker.spawn(Arc::clone(&worker).keep_time());
        worker.spawn(Arc::clone(&worker).listen());
        worker.spawn(Arc::clone(&worker).knock(Duration::ZERO));
        worker
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(task).abort_handle());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn health(&self) -> Health {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.state();
        let running = |kind| state.running.keys().filter(|claim| claim.kind == kind).count();
        Health {
            target_ready: state.gate.open,
            listening: self.store.database.notifications.is_listening(),
            running_flows: running(Kind::Flow),
            running_steps: running(Kind::Step),
            capacity: state.slots(Kind::Flow).capacity,
            deliveries: count(&self.counters.deliveries),
            completed: count(&self.counters.completed),
            failed: count(&self.counters.failed),
            rescheduled: count(&self.counters.rescheduled),
            unreachable: count(&self.counters.unreachable),
            leases_lost: count(&self.counters.lost),
            leases_swept: count(&self.counters.swept),
            runs_rescued: count(&self.counters.rescued),
            claimed_at_once: count(&self.counters.claimed_at_once),
        }
    }

    // Pushes of this process.

    /// Reserves a slot for a message that is about to be pushed, if it may be claimed at once.
    pub fn prepare(&self, push: &mut Push) {
        let mut state = self.state();
        let kind = push.message.kind;
        let (open, closing) = (state.gate.open, state.closing);
        let running = kind == Kind::Flow && state.delivering(kind, &push.group) > 0;
        if kind == Kind::Flow {
            let steps = state.delivering(Kind::Step, &push.group);
            let backlog = state.slots(Kind::Step).backlog;
            state.paces.hold(push, Situation { replaying: running, steps, backlog });
        }
        // A delivery of the same run that is not acknowledged yet: should PostgreSQL crash and forget the
        // push, it forgets the acknowledgement as well, and the delivery comes again and pushes again.
        push.durable = Kind::ALL.iter().all(|kind| state.delivering(*kind, &push.group) == 0);
        let delayed = !push.delay.is_zero();
        let slots = state.slots_mut(kind);
        push.claim = open && !closing && !delayed && !running && !slots.backlog && slots.free > 0;
        // Our turn after the delivery that is running, or our timer, finds it.
        push.quiet = !closing && (running || delayed);
        slots.free -= usize::from(push.claim);
    }

    pub fn pushed(self: &Arc<Self>, pushes: &[Push], pushed: &[Pushed]) {
        for (push, pushed) in pushes.iter().zip(pushed) {
            let kind = push.message.kind;
            let Some(claim) = &pushed.claim else {
                let mut state = self.state();
                let running = state.delivering(kind, &push.group) > 0;
                let slots = state.slots_mut(kind);
                slots.free += usize::from(push.claim);
                match push.delay {
                    delay if pushed.waits && !delay.is_zero() => slots.due_in(delay),
                    // What is quiet because its run was being delivered is seen by the turn that ends that
                    // delivery, unless it has ended meanwhile.
                    _ if pushed.waits && !(push.quiet && running) => slots.signal(),
                    _ => {}
                }
                drop(state);
                self.wake.notify_one();
                continue;
            };
            self.counters.claimed_at_once.fetch_add(1, Ordering::Relaxed);
            let message = Message::clone(&push.message);
            let delivery = message.into_delivery(self.namespace.as_deref(), 1);
            self.run(claim.clone(), push.group.clone(), Ok(delivery), 1);
        }
    }

    pub fn not_pushed(&self, pushes: &[Push]) {
        let mut state = self.state();
        for push in pushes.iter().filter(|push| push.claim) {
            state.slots_mut(push.message.kind).free += 1;
        }
    }

    // Deliveries.

    /// Delivers a job for which a slot is taken.
    fn run(
        self: &Arc<Self>,
        claim: Claim,
        group: String,
        delivery: std::result::Result<Delivery, String>,
        attempt: u32,
    ) {
        {
            let mut state = self.state();
            if state.running.is_empty() {
                self.beat.notify_one();
            }
            if claim.kind == Kind::Flow {
                state.paces.delivering(&group);
            }
            state.running.insert(
                claim.clone(),
                Running { group, since: Instant::now(), task: None, settling: false, lost: false },
            );
            if state.closing {
                state.settle(&claim, Action::Release);
                self.wake.notify_one();
                return;
            }
        }
        self.counters.deliveries.fetch_add(1, Ordering::Relaxed);
        let worker = Arc::clone(self);
        let job = claim.clone();
        let task = tokio::spawn(async move {
            let outcome = match delivery {
                Ok(delivery) => AssertUnwindSafe(async { worker.deliver.deliver(delivery).await })
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| Outcome::Failed { error: "the delivery panicked".to_owned() }),
                Err(error) => Outcome::Failed { error },
            };
            worker.finish(&job, outcome, attempt);
        });
        // The delivery may have ended already.
        if let Some(running) = self.state().running.get_mut(&claim) {
            running.task = Some(task.abort_handle());
        }
    }

    fn finish(self: &Arc<Self>, claim: &Claim, outcome: Outcome, attempt: u32) {
        let counter = match &outcome {
            Outcome::Done => &self.counters.completed,
            Outcome::Failed { .. } => &self.counters.failed,
            Outcome::Reschedule { .. } => &self.counters.rescheduled,
            Outcome::Unreachable { .. } => &self.counters.unreachable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Outcome::Failed { error } = &outcome {
            // Never routine: a step's own error is a delivery that went well.
            self.log.log(
                Level::Warn,
                "A delivery failed and will be repeated",
                &[("job", &claim.job_id), ("attempt", &attempt.to_string()), ("error", error)],
            );
        }

        let mut unreachable = String::new();
        let mut closed_now = None;
        let mut state = self.state();
        if !matches!(outcome, Outcome::Unreachable { .. }) {
            state.gate.closings = 0;
        } else if std::mem::take(&mut state.gate.open) {
            closed_now = Some(state.gate.closings);
            state.gate.closings = state.gate.closings.saturating_add(1);
        }
        let action = match outcome {
            Outcome::Done => Action::Complete,
            Outcome::Failed { error } => Action::Fail { error, delay: retry_delay(attempt) },
            Outcome::Reschedule { delay } => Action::Reschedule { delay },
            Outcome::Unreachable { error } => {
                unreachable = error;
                Action::Release
            }
        };
        state.settle(claim, action);
        let pacing = state.keep_pace(claim);
        drop(state);
        if let Some(pacing) = pacing {
            self.spawn(Arc::clone(self).bring_forward(pacing));
        }
        if let Some(closings) = closed_now {
            if closings == 0 {
                self.log.log(
                    Level::Warn,
                    "The target does not take deliveries; they wait, and no attempt is spent",
                    &[("error", &unreachable)],
                );
            }
            self.spawn(Arc::clone(self).knock(backoff(closings)));
        }
        self.wake.notify_one();
    }

    /// A wake that was held back is due now. Should this fail, it comes at its own time.
    async fn bring_forward(self: Arc<Self>, pacing: Pacing) {
        let wake = match pacing {
            Pacing::Wake(wake) => wake,
            Pacing::Pause { run, mut pause } => loop {
                sleep(pause).await;
                let mut state = self.state();
                let backlog = state.slots(Kind::Step).backlog;
                if let Some(wake) = state.paces.due(&run, backlog) {
                    break wake;
                }
                // With steps running, the end of the last one brings it forward.
                if !state.paces.is_holding(&run) || state.delivering(Kind::Step, &run) > 0 || state.closing {
                    return;
                }
                pause = CLAIM_AGAIN;
            },
        };
        let mut pushes = [wake];
        self.prepare(&mut pushes[0]);
        match self.store.push(&pushes).await {
            Ok(pushed) => self.pushed(&pushes, &pushed),
            Err(_) => self.not_pushed(&pushes),
        }
    }

    /// Opens the gate once the target answers.
    async fn knock(self: Arc<Self>, first: Duration) {
        sleep(first).await;
        let mut knocks = 0;
        while !self.deliver.ready().await {
            sleep(backoff(knocks).min(Duration::from_secs(1))).await;
            knocks = knocks.saturating_add(1);
        }
        let closings = {
            let mut state = self.state();
            state.gate.open = true;
            state.gate.closings
        };
        if closings == 1 {
            self.log.log(Level::Info, "The target takes deliveries again", &[]);
        }
        self.wake.notify_one();
    }

    // Turns.

    async fn take_turns(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let Some((settlements, most)) = self.next_turn() else {
                let next = self.state().next_due();
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = async { match next { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
                }
                continue;
            };
            let signals = self.state().slots.each_ref().map(|slots| slots.signals);
            match self.store.settle(&settlements, most).await {
                Ok(turn) => {
                    failures = 0;
                    self.apply(&settlements, most, signals, turn);
                }
                // Nobody can settle anything any more; leases run out.
                Err(Error::Closed) => return,
                Err(error) => {
                    self.trouble("Deliveries could not be settled or claimed; trying again", &error);
                    {
                        let mut state = self.state();
                        for kind in Kind::ALL {
                            let most = most[kind as usize].unwrap_or(0);
                            let settled = settled(&settlements, kind);
                            let slots = state.slots_mut(kind);
                            slots.free += reserved(most, settled);
                            slots.backlog = true;
                        }
                        // Fenced: writing it late does no harm, and no later than it would have been.
                        state.settlements.splice(0..0, settlements);
                    }
                    sleep(backoff(failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// What the next statement is to do, with the slots for its claims taken; `None`: nothing.
    #[allow(clippy::type_complexity)]
    fn next_turn(&self) -> Option<(Vec<Settlement>, [Option<i32>; 2])> {
        let mut state = self.state();
        let claiming = state.gate.open && !state.closing;
        let settlements = std::mem::take(&mut state.settlements);
        let now = Instant::now();
        let most = Kind::ALL.map(|kind| {
            let settled = settled(&settlements, kind);
            let slots = state.slots_mut(kind);
            if slots.next.is_some_and(|at| at <= now) {
                slots.next = None;
                slots.signal();
            }
            if !claiming {
                return None;
            }
            let most = if slots.backlog {
                slots.free + settled
            } else if kind == Kind::Flow {
                // Only what waited for its run to be delivered.
                settled
            } else {
                0
            };
            slots.free -= most.saturating_sub(settled);
            (most > 0).then_some(i32::try_from(most).unwrap_or(i32::MAX))
        });
        (!settlements.is_empty() || most.iter().any(Option::is_some)).then_some((settlements, most))
    }

    fn apply(
        self: &Arc<Self>,
        settlements: &[Settlement],
        most: [Option<i32>; 2],
        signals: [u64; 2],
        turn: Turn,
    ) {
        self.lost(&turn.lost);
        {
            let mut state = self.state();
            for settlement in settlements {
                state.running.remove(&settlement.claim);
                if let Some(delay) = settlement.action.delay() {
                    let slots = state.slots_mut(settlement.claim.kind);
                    if delay.is_zero() { slots.signal() } else { slots.due_in(delay) }
                }
            }
            for kind in Kind::ALL {
                let claimed = turn.claimed.iter().filter(|claimed| claimed.claim.kind == kind).count();
                let asked = most[kind as usize].map(|most| usize::try_from(most).unwrap_or(0));
                let again = turn.again.contains(&kind);
                let slots = state.slots_mut(kind);
                slots.free += reserved(most[kind as usize].unwrap_or(0), settled(settlements, kind));
                slots.free += settled(settlements, kind);
                slots.free -= claimed;
                match asked {
                    Some(_) if again => {
                        slots.backlog = false;
                        slots.due_in(CLAIM_AGAIN);
                    }
                    Some(asked) if claimed < asked => {
                        slots.backlog = slots.signals != signals[kind as usize];
                    }
                    Some(_) => slots.backlog = true,
                    None => {}
                }
            }
            for (kind, delay) in turn.next {
                state.slots_mut(kind).due_in(delay);
            }
        }
        self.ended.notify_waiters();
        for Claimed { claim, attempt, group, data } in turn.claimed {
            let delivery =
                Delivery::from_data(claim.kind, self.namespace.as_deref(), attempt, &claim.job_id, &data);
            self.run(claim, group, delivery, attempt);
        }
    }

    // Time.

    async fn listen(self: Arc<Self>) {
        let notifications = &self.store.database.notifications;
        let channel = notifications.channels().queue.clone();
        let flows = notifications.subscribe(&channel, self.store.queues.name(Kind::Flow));
        let steps = notifications.subscribe(&channel, self.store.queues.name(Kind::Step));
        loop {
            let kind = tokio::select! {
                () = flows.notified() => Kind::Flow,
                () = steps.notified() => Kind::Step,
            };
            self.state().slots_mut(kind).signal();
            self.wake.notify_one();
        }
    }

    async fn keep_time(self: Arc<Self>) {
        let start = Instant::now();
        let mut sweep_at = start;
        // Soon: a deployment is when runs get stranded.
        let mut rescue_at = start + RESCUE.mul_f64(rand::random_range(0.05..0.2));
        let mut purge_at = start + PURGE.mul_f64(rand::random_range(0.5..1.5));
        let mut page = String::new();
        let mut failures = 0;
        loop {
            let own = self.claims();
            let mut beat_at = Instant::now() + HEARTBEAT;
            if own.is_empty() {
                beat_at = sweep_at;
            }
            tokio::select! {
                () = sleep_until(sweep_at.min(beat_at)) => {}
                // The first lease: from now on there are beats.
                () = self.beat.notified(), if own.is_empty() => continue,
            }
            let now = Instant::now();
            let result = async {
                self.heartbeat().await?;
                if sweep_at <= now {
                    sweep_at = now + self.sweep().await?;
                }
                if rescue_at <= now && !self.state().closing {
                    let pause = self.rescue(&mut page).await?;
                    rescue_at = now + pause.mul_f64(rand::random_range(0.75..1.25));
                }
                if purge_at <= now {
                    self.store.purge().await?;
                    purge_at = now + PURGE;
                }
                Ok::<_, Error>(())
            }
            .await;
            match result {
                Ok(()) => failures = 0,
                Err(Error::Closed) => return,
                Err(error) => {
                    self.trouble("Leases could not be renewed or looked after; trying again", &error);
                    sweep_at = sweep_at.max(now + backoff(failures));
                    sleep(backoff(failures).min(HEARTBEAT / 4)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    async fn heartbeat(&self) -> Result<()> {
        let own = self.claims();
        if own.is_empty() {
            return Ok(());
        }
        let mut gone = self.store.heartbeat(&own).await?;
        {
            // What is being settled is gone for a good reason.
            let state = self.state();
            gone.retain(|claim| state.running.get(claim).is_some_and(|running| !running.settling));
        }
        self.lost(&gone);
        Ok(())
    }

    /// Their deliveries cannot be stopped, but what becomes of them does not count any more.
    fn lost(&self, claims: &[Claim]) {
        for claim in claims {
            let first = match self.state().running.get_mut(claim) {
                Some(running) => !std::mem::replace(&mut running.lost, true),
                None => false,
            };
            if first {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
                self.log.log(
                    Level::Warn,
                    "The lease of a delivery was lost; another worker has its job",
                    &[("job", &claim.job_id)],
                );
            }
        }
    }

    /// Returns how long to wait for the next sweep.
    async fn sweep(&self) -> Result<Duration> {
        let release = self.state().trouble.is_none_or(|at| at.elapsed() > LEASE);
        let swept = self.store.sweep(release, &self.claims()).await?;
        if swept.released > 0 {
            self.counters.swept.fetch_add(swept.released, Ordering::Relaxed);
            let count = swept.released.to_string();
            self.log.log(
                Level::Warn,
                "Leases of a dead worker have expired; its jobs run again",
                &[("jobs", &count)],
            );
        }
        {
            let mut state = self.state();
            for kind in swept.due {
                state.slots_mut(kind).signal();
            }
            for (kind, delay) in swept.next {
                state.slots_mut(kind).due_in(delay);
            }
        }
        self.wake.notify_one();
        let period =
            if self.store.database.notifications.is_listening() { SWEEP } else { SWEEP_WITHOUT_LISTEN };
        Ok(swept.expiry.unwrap_or(period).min(period).max(SWEEP_GAP))
    }

    /// Wakes stranded runs of the next page; returns how long to wait for the one after it.
    async fn rescue(&self, page: &mut String) -> Result<Duration> {
        let (stranded, next) = self.store.stranded(page).await?;
        if !stranded.is_empty() {
            let mut pushes = stranded.iter().map(wake_up).collect::<Result<Vec<_>>>()?;
            pushes.sort_by(|a, b| a.order().cmp(&b.order()));
            // Woken first, marked then: a crash in between wakes once more, but leaves nobody behind.
            self.store.push(&pushes).await?;
            self.store.mark_rescued(&stranded).await?;
            self.counters.rescued.fetch_add(stranded.len() as u64, Ordering::Relaxed);
            let count = stranded.len().to_string();
            self.log.log(Level::Info, "Runs without a message were woken", &[("runs", &count)]);
        }
        let pause = if next.is_some() { RESCUE_NEXT_PAGE } else { RESCUE };
        *page = next.unwrap_or_default();
        Ok(pause)
    }

    fn claims(&self) -> Vec<Claim> {
        self.state().claims()
    }

    fn trouble(&self, message: &str, error: &Error) {
        let first = {
            let mut state = self.state();
            let quiet = state.trouble.is_some_and(|at| at.elapsed() < BACKOFF_MAX * 2);
            state.trouble = Some(Instant::now());
            !quiet
        };
        // Once per outage, not once per try.
        if first {
            self.log.log(Level::Warn, message, &[("error", &error.to_string())]);
        }
    }

    // The end.

    pub async fn close(self: Arc<Self>, limit: Duration) {
        self.state().closing = true;
        self.wake.notify_one();
        if timeout(limit, self.rest()).await.is_err() {
            self.give_back();
            self.wake.notify_one();
            if timeout(GIVE_BACK, self.rest()).await.is_err() {
                self.log.log(
                    Level::Warn,
                    "Jobs could not be given back on close; others take them when their leases expire",
                    &[],
                );
            }
        }
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
        }
    }

    fn give_back(&self) {
        let mut state = self.state();
        for claim in state.claims() {
            if let Some(task) = state.running.get_mut(&claim).and_then(|running| running.task.take()) {
                task.abort();
            }
            state.settle(&claim, Action::Release);
        }
    }

    /// Until nothing runs, nor is about to run, nor has to be settled.
    async fn rest(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.state().at_rest() {
                return;
            }
            // A reserved slot is given back without ceremony; hence the pause.
            tokio::select! {
                () = ended => {}
                () = sleep(Duration::from_millis(50)) => {}
            }
        }
    }
}

impl State {
    fn slots(&self, kind: Kind) -> &Slots {
        &self.slots[kind as usize]
    }

    fn slots_mut(&mut self, kind: Kind) -> &mut Slots {
        &mut self.slots[kind as usize]
    }

    fn claims(&self) -> Vec<Claim> {
        self.running.keys().cloned().collect()
    }

    /// How many deliveries of a run are going on.
    fn delivering(&self, kind: Kind, group: &str) -> usize {
        self.running
            .iter()
            .filter(|(claim, running)| claim.kind == kind && running.will_settle(group))
            .count()
    }

    /// Keeps the pace of a run whose delivery has ended.
    fn keep_pace(&mut self, claim: &Claim) -> Option<Pacing> {
        let Running { group, since, .. } = self.running.get(claim)?;
        let (run, took) = (group.clone(), since.elapsed());
        let steps = self.delivering(Kind::Step, &run);
        match claim.kind {
            Kind::Flow => self.paces.replayed(&run, took, steps).map(|pause| Pacing::Pause { run, pause }),
            Kind::Step => match self.paces.step_ended(&run, steps, self.slots(Kind::Step).backlog) {
                Some(wake) => Some(Pacing::Wake(wake)),
                None => (steps == 0 && self.paces.is_holding(&run))
                    .then_some(Pacing::Pause { run, pause: CLAIM_AGAIN }),
            },
        }
    }

    /// A claim is settled once: what was given back on close cannot end as well.
    fn settle(&mut self, claim: &Claim, action: Action) {
        if let Some(running) = self.running.get_mut(claim)
            && !running.settling
        {
            running.settling = true;
            self.settlements.push(Settlement { claim: claim.clone(), action });
        }
    }

    /// When the turns should look without being woken.
    fn next_due(&self) -> Option<Instant> {
        if self.closing || !self.gate.open {
            return None;
        }
        self.slots.iter().filter_map(|slots| slots.next).min()
    }

    fn at_rest(&self) -> bool {
        self.running.is_empty()
            && self.settlements.is_empty()
            && self.slots.iter().all(|slots| slots.free == slots.capacity)
    }
}

impl Slots {
    fn signal(&mut self) {
        self.backlog = true;
        self.signals += 1;
    }

    fn due_in(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

fn settled(settlements: &[Settlement], kind: Kind) -> usize {
    settlements.iter().filter(|settlement| settlement.claim.kind == kind).count()
}

/// The slots that a turn took for its claims beyond those of the jobs that it settles.
fn reserved(most: i32, settled: usize) -> usize {
    usize::try_from(most).unwrap_or(0).saturating_sub(settled)
}

fn wake_up(run: &Stranded) -> Result<Push> {
    Push::new(Arc::new(Message {
        kind: Kind::Flow,
        id: run.workflow.clone(),
        queue_name: format!("__wkf_workflow_{}", run.workflow),
        idempotency_key: None,
        message_id: new_message_id(),
        body: serde_json::json!({ "runId": run.run_id }).to_string().into_bytes(),
        headers: Vec::new(),
        delay: None,
    }))
}
