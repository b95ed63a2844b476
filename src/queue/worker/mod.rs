//! Claims jobs, has them delivered, settles them, and keeps its leases alive.
//!
//! One task takes turns: each turn is one statement that settles what has ended and claims what there
//! are slots for. While a turn is under way, what ends collects for the next. Heartbeats, sweeps, rescues and
//! purges are tasks of their own, so that none of them waits for another.

mod close;
mod heartbeat;
mod listen;
mod purge;
mod rescue;
mod service;
mod state;
mod sweep;
mod turns;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use self::service::Pulse;
pub use self::state::Reserved;
use self::state::{Gate, Pacing, Running, Slots, State};
use self::watch::Watch;
use super::pace::{Paces, Situation};
use super::store::{Action, Claim, Push, Pushed, Store};
use super::ticket::HeldTicket;
use super::timing::{CLAIM_AGAIN, LEASE, LOOP_WARN, NOT_TAKEN, STUCK, TARGET_STARTS, backoff, retry_delay};
use super::{Deliver, Delivery, EventLoop, Kind, Level, Log, Message, Outcome};
use crate::config::QueueConfig;
use crate::tasks::{self, caught};

pub struct Worker {
    store: Arc<Store>,
    deliver: Arc<dyn Deliver>,
    log: Arc<dyn Log>,
    event_loop: Arc<EventLoop>,
    namespace: Option<String>,
    state: Mutex<State>,
    /// The turns look again.
    wake: Notify,
    /// Leases are held where none were.
    first_lease: Notify,
    /// Something has ended.
    ended: Notify,
    counters: Counters,
    pulses: Pulses,
    /// When a sweep may read the whole backlog again.
    full_sweep_at: Mutex<Instant>,
    tasks: Mutex<Vec<AbortHandle>>,
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
    given_up: AtomicU64,
    claimed_at_once: AtomicU64,
}

/// When the services of a worker last succeeded.
#[derive(Default)]
struct Pulses {
    turn: Pulse,
    heartbeat: Pulse,
    sweep: Pulse,
}

/// A job that was claimed.
struct Job {
    claim: Claim,
    group: String,
    attempt: u32,
    /// Nothing else is to run beside it.
    alone: bool,
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
    /// For flows and for steps each, as configured.
    pub capacity: usize,
    /// The slots that there are now: more than configured where all of those only waited.
    pub flow_slots: usize,
    pub step_slots: usize,
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
    /// Messages that are not delivered any more, after too many failures or deaths of their process.
    pub given_up: u64,
    /// Ended deliveries that PostgreSQL refuses to settle.
    pub refused: usize,
    /// Jobs that were claimed as they were inserted.
    pub claimed_at_once: u64,
    /// Why the target did not take a message lately, though it takes others.
    #[serde(skip)]
    pub not_taken: Option<String>,
    /// Since jobs were last settled and claimed, or there was nothing to do.
    pub last_turn_ms: u64,
    /// Since the leases of what is being delivered were last renewed. `None` while nothing is.
    pub last_heartbeat_ms: Option<u64>,
    /// Since expired leases were last looked for.
    pub last_sweep_ms: u64,
    /// The longest time lately for which the event loop did not turn.
    pub event_loop_lag_ms: u64,
    /// Why this worker is not healthy. Empty: it is.
    #[serde(skip)]
    pub problems: Vec<String>,
}

impl Worker {
    pub fn start(
        store: Arc<Store>,
        config: &QueueConfig,
        deliver: Arc<dyn Deliver>,
        log: Arc<dyn Log>,
        event_loop: Arc<EventLoop>,
    ) -> Arc<Self> {
        let slots = || Slots::new(config.concurrency as usize, config.concurrency_limit as usize);
        let worker = Arc::new(Self {
            store,
            deliver,
            log,
            event_loop,
            namespace: config.namespace.clone(),
            state: Mutex::new(State {
                slots: [slots(), slots()],
                running: HashMap::new(),
                settlements: Vec::new(),
                gate: Gate { open: false, closings: 0, told: false },
                closing: false,
                not_taken: None,
                paces: Paces::default(),
                trouble: None,
                watch: Watch::default(),
                lonely: None,
                aside: Vec::new(),
            }),
            wake: Notify::new(),
            first_lease: Notify::new(),
            ended: Notify::new(),
            counters: Counters::default(),
            pulses: Pulses::default(),
            full_sweep_at: Mutex::new(Instant::now()),
            tasks: Mutex::default(),
        });
        worker.spawn("The claiming and settling of jobs", Self::take_turns);
        worker.spawn("The renewal of leases", Self::keep_beating);
        worker.spawn("The sweep for expired leases", Self::keep_sweeping);
        worker.spawn("The search for stranded runs", Self::keep_rescuing);
        worker.spawn("The purge of ended jobs", Self::keep_purging);
        worker.spawn("The wait for notifications", Self::listen);
        worker.spawn("The watch over the event loop and the slots", Self::keep_watch);
        worker.knock_after(Duration::ZERO);
        worker
    }

    /// Spawns a task that ends with the worker at the latest, and begins anew after a panic.
    fn spawn<F>(self: &Arc<Self>, name: &'static str, mut task: impl FnMut(Arc<Self>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let worker = Arc::clone(self);
        let task = tasks::spawn(name, move || task(Arc::clone(&worker)));
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> Vec<Claim> {
        self.state().claims()
    }

    pub fn health(&self) -> Health {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let problems = self.problems();
        let state = self.state();
        Health {
            target_ready: state.gate.open,
            listening: self.store.database.notifications.is_listening(),
            running_flows: state.running(Kind::Flow),
            running_steps: state.running(Kind::Step),
            capacity: state.slots(Kind::Flow).configured,
            flow_slots: state.slots(Kind::Flow).capacity,
            step_slots: state.slots(Kind::Step).capacity,
            deliveries: count(&self.counters.deliveries),
            completed: count(&self.counters.completed),
            failed: count(&self.counters.failed),
            rescheduled: count(&self.counters.rescheduled),
            unreachable: count(&self.counters.unreachable),
            leases_lost: count(&self.counters.lost),
            leases_swept: count(&self.counters.swept),
            runs_rescued: count(&self.counters.rescued),
            given_up: count(&self.counters.given_up),
            refused: state.refused(),
            claimed_at_once: count(&self.counters.claimed_at_once),
            not_taken: state.not_taken_lately().map(str::to_owned),
            last_turn_ms: whole_ms(self.pulses.turn.age()),
            last_heartbeat_ms: (!state.running.is_empty()).then(|| whole_ms(self.pulses.heartbeat.age())),
            last_sweep_ms: whole_ms(self.pulses.sweep.age()),
            event_loop_lag_ms: whole_ms(state.watch.longest_lag()),
            problems,
        }
    }

    fn problems(&self) -> Vec<String> {
        let refused = self.state().refused();
        let late = |what: &str, age: Duration| format!("{what} for {:.1} s", age.as_secs_f64());
        let lag = Some(self.state().watch.longest_lag()).filter(|lag| *lag >= LOOP_WARN);
        let stuck = |pulse: &Pulse| Some(pulse.age()).filter(|age| *age > STUCK);
        [
            stuck(&self.pulses.turn).map(|age| late("Jobs were neither claimed nor settled", age)),
            stuck(&self.pulses.sweep).map(|age| late("Expired leases were not looked for", age)),
            lag.map(|lag| late("The event loop of the process did not turn", lag)),
            self.overdue_heartbeat()
                .map(|age| late("The leases of running deliveries were not renewed", age)),
            (refused > 0).then(|| {
                format!("PostgreSQL refuses to settle {refused} deliveries that have ended; see the log")
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Reserves slots for those messages that may be claimed as they are pushed.
    pub fn prepare(self: &Arc<Self>, pushes: &mut [Push]) -> Reserved {
        let mut state = self.state();
        let mut reserved = Reserved::new(self, &mut state, [0, 0]);
        let mut claims = [0, 0];
        for push in pushes {
            self.prepare_one(&mut state, push);
            claims[push.message.kind as usize] += usize::from(push.claim);
            reserved.change(&mut state, claims);
        }
        reserved
    }

    fn prepare_one(&self, state: &mut State, push: &mut Push) {
        let kind = push.message.kind;
        let takes_jobs = state.claims_jobs();
        let running = kind == Kind::Flow && state.delivering(kind, &push.group) > 0;
        if kind == Kind::Flow {
            let steps = state.delivering(Kind::Step, &push.group);
            let backlog = state.slots(Kind::Step).backlog;
            state.paces.hold(push, Situation { replaying: running, steps, backlog });
        }
        // Asynchronous commit is safe beside a delivery of the same run: a crash of PostgreSQL that forgets this
        // push also forgets the later acknowledgement of that delivery, which then repeats and pushes again.
        push.durable = Kind::ALL.iter().all(|kind| state.delivering(*kind, &push.group) == 0);
        let delayed = !push.delay.is_zero();
        push.claim = takes_jobs && !delayed && !running && !state.slots(kind).backlog && state.free(kind) > 0;
        // No notification: this worker looks again when the delivery ends or its timer fires.
        push.quiet = takes_jobs && (running || delayed);
    }

    /// `asked`: when the push began.
    pub fn pushed(self: &Arc<Self>, push: &Push, pushed: &Pushed, asked: Instant) {
        let kind = push.message.kind;
        if let Some(claim) = &pushed.claim {
            self.counters.claimed_at_once.fetch_add(1, Ordering::Relaxed);
            let message = Message::clone(&push.message);
            let delivery = message.into_delivery(self.namespace.as_deref(), 1);
            let job = Job { claim: claim.clone(), group: push.group.clone(), attempt: 1, alone: false };
            self.run(job, Ok(delivery), asked);
            return;
        }
        {
            let mut state = self.state();
            let running = state.delivering(kind, &push.group) > 0;
            let slots = state.slots_mut(kind);
            match push.delay {
                delay if pushed.waits && !delay.is_zero() => slots.due_in(delay),
                // A push that is quiet because its run was being delivered is found by the turn that ends
                // that delivery, unless the delivery has ended meanwhile.
                _ if pushed.waits && !(push.quiet && running) => slots.signal(),
                _ => {}
            }
        }
        self.wake.notify_one();
    }

    /// Delivers a job for which a slot is taken. `asked`: when its claim was asked for; the lease may have
    /// begun then.
    fn run(self: &Arc<Self>, job: Job, mut delivery: std::result::Result<Delivery, String>, asked: Instant) {
        let Job { claim, group, attempt, alone } = job;
        let name = delivery.as_ref().map_or_else(|_| String::new(), |delivery| delivery.id.clone());
        let ticket = HeldTicket::issue();
        if let Ok(delivery) = &mut delivery {
            delivery.ticket = ticket.ticket().clone();
        }
        {
            let mut state = self.state();
            if state.running.is_empty() {
                self.pulses.heartbeat.touch();
                self.first_lease.notify_one();
            }
            if claim.kind == Kind::Flow {
                state.paces.delivering(&group);
            }
            state.running.insert(
                claim.clone(),
                Running {
                    group,
                    name,
                    alone,
                    refusals: 0,
                    since: Instant::now(),
                    task: None,
                    settling: false,
                    lost: false,
                    ticket,
                },
            );
            // This process was stopped for as long as a lease lasts: another worker has the job by now.
            if !state.takes_jobs() || (!alone && state.has_lonely()) || asked.elapsed() >= LEASE {
                state.settle(&claim, Action::Release { delay: Duration::ZERO });
                self.wake.notify_one();
                return;
            }
        }
        self.counters.deliveries.fetch_add(1, Ordering::Relaxed);
        let worker = Arc::clone(self);
        let job = claim.clone();
        let task = tokio::spawn(async move {
            let outcome = match delivery {
                Ok(delivery) => caught("A delivery", async { worker.deliver.deliver(delivery).await })
                    .await
                    .unwrap_or_else(|error| Outcome::Failed { error: error.to_string() }),
                Err(error) => Outcome::Failed { error },
            };
            if let Err(error) =
                caught("The end of a delivery", async { worker.finish(&job, outcome, attempt) }).await
            {
                let action = Action::Fail { error: error.to_string(), delay: retry_delay(attempt) };
                worker.state().settle(&job, action);
                worker.wake.notify_one();
            }
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
            Outcome::Unreachable { .. } | Outcome::NotTaken { .. } => &self.counters.unreachable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Outcome::Failed { error } = &outcome {
            // Never routine: a step's own error is a delivery that went well.
            let (run, name) = self.state().about(claim);
            self.log.log(
                Level::Warn,
                "A delivery failed",
                &[
                    ("run", &run),
                    (claim.kind.noun(), &name),
                    ("job", &claim.job_id),
                    ("attempt", &attempt.to_string()),
                    ("error", error),
                ],
            );
        }

        let mut closed_now = None;
        let mut not_taken_now = None;
        let mut state = self.state();
        if matches!(outcome, Outcome::Done | Outcome::Failed { .. } | Outcome::Reschedule { .. }) {
            state.gate.closings = 0;
        }
        let action = match outcome {
            Outcome::Done => Action::Complete,
            Outcome::Failed { error } => Action::Fail { error, delay: retry_delay(attempt) },
            Outcome::Reschedule { delay } => Action::Reschedule { delay },
            Outcome::Unreachable { error } => {
                if std::mem::take(&mut state.gate.open) {
                    let closings = state.gate.closings;
                    state.gate.closings = closings.saturating_add(1);
                    closed_now = Some((closings, error));
                }
                Action::Release { delay: Duration::ZERO }
            }
            Outcome::NotTaken { error } => {
                if state.not_taken_lately().is_none() {
                    not_taken_now = Some(error.clone());
                    state.not_taken = Some((Instant::now(), error));
                }
                Action::Release { delay: NOT_TAKEN.mul_f64(rand::random_range(0.75..1.25)) }
            }
        };
        state.settle(claim, action);
        let pacing = state.keep_pace(claim);
        drop(state);
        if let Some(pacing) = pacing {
            let mut pacing = Some(pacing);
            self.spawn("A wake that was held back", move |worker| worker.bring_forward(pacing.take()));
        }
        if let Some(error) = not_taken_now {
            self.log.log(
                Level::Warn,
                "The target did not take a message, though it takes others; no attempt is spent",
                &[("job", &claim.job_id), ("error", &error)],
            );
        }
        if let Some((closings, error)) = closed_now {
            if closings == 0 {
                self.tell_closed(&error);
            }
            // Other workers may have a target that takes what this one would have looked for in time.
            self.spawn("The announcement of due jobs", Self::tell_others);
            self.knock_after(backoff(closings));
        }
        self.wake.notify_one();
    }

    fn tell_refused(&self, job_id: &str, error: &str) {
        self.log.log(
            Level::Error,
            "PostgreSQL refuses to change a job; the others go on",
            &[("job", job_id), ("error", error)],
        );
    }

    fn tell_closed(&self, error: &str) {
        if std::mem::replace(&mut self.state().gate.told, true) {
            return;
        }
        self.log.log(
            Level::Warn,
            "The target does not take deliveries; they wait, and no attempt is spent",
            &[("error", error)],
        );
    }

    /// A wake that was held back is due now. Should this fail, it comes at its own time.
    async fn bring_forward(self: Arc<Self>, pacing: Option<Pacing>) {
        let wake = match pacing {
            None => return,
            Some(Pacing::Wake(wake)) => wake,
            Some(Pacing::Pause { run, mut pause }) => loop {
                // Asked again soon: the backlog may end meanwhile, and the last step of the run with it.
                sleep(pause.min(CLAIM_AGAIN)).await;
                let mut state = self.state();
                let backlog = state.slots(Kind::Step).backlog;
                let steps = state.delivering(Kind::Step, &run);
                if let Some(wake) = state.paces.step_ended(&run, steps, backlog) {
                    break wake;
                }
                match state.paces.due(&run, backlog) {
                    Ok(wake) => break wake,
                    Err(Some(rest)) if !state.closing => pause = rest,
                    Err(_) => return,
                }
            },
        };
        let mut pushes = [wake];
        let _reserved = self.prepare(&mut pushes);
        let asked = Instant::now();
        if let Ok(pushed) = self.store.push_one(&pushes[0]).await {
            self.pushed(&pushes[0], &pushed, asked);
        }
    }

    fn knock_after(self: &Arc<Self>, pause: Duration) {
        self.spawn("The wait for the target of deliveries", move |worker| worker.knock(pause));
    }

    /// Opens the gate once the target takes deliveries.
    async fn knock(self: Arc<Self>, first: Duration) {
        sleep(first).await;
        let start = Instant::now();
        let mut knocks = 0;
        while let Err(error) = self.deliver.ready().await {
            if start.elapsed() >= TARGET_STARTS {
                self.tell_closed(&error);
            }
            sleep(backoff(knocks).min(Duration::from_secs(1))).await;
            knocks = knocks.saturating_add(1);
        }
        let told = {
            let gate = &mut self.state().gate;
            gate.open = true;
            std::mem::take(&mut gate.told)
        };
        if told {
            self.log.log(Level::Info, "The target takes deliveries again", &[]);
        }
        self.wake.notify_one();
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
