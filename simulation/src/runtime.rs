//! [`NodeRt`]: openraft's simulated runtime, in which every task belongs to a process that can be killed.
//!
//! `Raft::shutdown` is graceful and would wait for a disk that is gone. A crash is none of that: all tasks of the process
//! are dropped at one instant, wherever they are; only their `Drop` code still runs.

use crate::lock;
use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_sim::{SimInstant, SimRuntime};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

thread_local! {
    /// The process whose task is being polled.
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// One life of a process, from its start to its end: owns all tasks that were spawned by it.
#[derive(Default)]
pub struct Process(Mutex<Tasks>);

#[derive(Default)]
struct Tasks {
    dead: bool,
    all: Vec<Weak<dyn Kill>>,
    mourners: Waiters,
}

/// Who waits for something to be so. The simulated runtime makes another waker each time it polls a task, so that only
/// its place tells whose waker it takes the place of.
#[derive(Default)]
pub(crate) struct Waiters {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Waiters {
    /// In the order in which they began to wait.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        std::mem::take(&mut self.wakers).into_values()
    }
}

/// Ready once it is so.
pub(crate) struct Until<'a, T> {
    state: &'a Mutex<T>,
    /// Whether it is so, and who waits for it.
    look: fn(&mut T) -> (bool, &mut Waiters),
    place: Option<u64>,
}

impl<'a, T> Until<'a, T> {
    pub(crate) fn new(state: &'a Mutex<T>, look: fn(&mut T) -> (bool, &mut Waiters)) -> Self {
        Self { state, look, place: None }
    }
}

impl<T> Future for Until<'_, T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(self.state);
        let (so, waiters) = (self.look)(&mut state);
        if so {
            return Poll::Ready(());
        }
        let place = self.place.unwrap_or_else(|| {
            waiters.next += 1;
            waiters.next
        });
        let before = waiters.wakers.insert(place, cx.waker().clone());
        drop(state);
        drop(before);
        self.place = Some(place);
        Poll::Pending
    }
}

impl<T> Drop for Until<'_, T> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            // Outside of the lock: a waker may be the last to know of its task.
            let waker = (self.look)(&mut lock(self.state)).1.wakers.remove(&place);
            drop(waker);
        }
    }
}

impl Process {
    /// Spawns a task of this process; whatever it spawns is of this process too.
    pub fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _inside = Inside::of(Some(self.clone()));
        NodeRt::spawn(future)
    }

    /// Drops every task at once.
    pub fn kill(self: &Arc<Self>) {
        let (tasks, mourners) = {
            let mut tasks = lock(&self.0);
            tasks.dead = true;
            (std::mem::take(&mut tasks.all), tasks.mourners.take())
        };
        let _inside = Inside::of(Some(self.clone()));
        for task in tasks.iter().filter_map(Weak::upgrade) {
            task.kill();
        }
        mourners.for_each(Waker::wake);
    }

    /// Done once the process is killed: for those outside who wait for an answer of it.
    pub fn gone(&self) -> impl Future<Output = ()> {
        Until::new(&self.0, |tasks| (tasks.dead, &mut tasks.mourners))
    }

    /// True after [`Process::kill`].
    pub fn is_dead(&self) -> bool {
        lock(&self.0).dead
    }

    fn adopt(&self, task: Weak<dyn Kill>) -> bool {
        let mut tasks = lock(&self.0);
        if tasks.dead {
            return false;
        }
        if tasks.all.len() >= 64 && tasks.all.len().is_power_of_two() {
            tasks.all.retain(|task| task.strong_count() > 0);
        }
        tasks.all.push(task);
        true
    }
}

/// Code up to the end of the scope runs as this process, or as the world (`None`).
pub struct Inside(Option<Arc<Process>>);

impl Inside {
    /// Enters.
    pub fn of(process: Option<Arc<Process>>) -> Self {
        Self(CURRENT.replace(process))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

trait Kill: Send + Sync {
    fn kill(&self);
}

struct Slot<F>(Mutex<Option<Pin<Box<F>>>>);

impl<F: Future + Send> Kill for Slot<F> {
    fn kill(&self) {
        let future = lock(&self.0).take();
        drop(future);
    }
}

struct Owned<F> {
    slot: Arc<Slot<F>>,
    process: Arc<Process>,
}

impl<F: Future + Send> Future for Owned<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Killed: never again.
        let Some(mut future) = lock(&self.slot.0).take() else { return Poll::Pending };
        let _inside = Inside::of(Some(self.process.clone()));
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && !self.process.is_dead() {
            *lock(&self.slot.0) = Some(future);
        }
        polled
    }
}

/// A task's result.
pub type JoinHandle<T> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;

/// Single thread, virtual time, tasks with an owner.
#[derive(Debug)]
pub struct NodeRt(SimRuntime);

impl NodeRt {
    /// A runtime whose random numbers come from `seed`.
    pub fn with_seed(seed: u64) -> Self {
        Self(SimRuntime::with_seed(seed))
    }

    /// The runtime below.
    pub fn sim(&mut self) -> &mut SimRuntime {
        &mut self.0
    }
}

impl AsyncRuntime for NodeRt {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = SimInstant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let Some(process) = CURRENT.with_borrow(Clone::clone) else { return SimRuntime::spawn(future) };
        let slot = Arc::new(Slot(Mutex::new(Some(Box::pin(future)))));
        let task: Weak<Slot<T>> = Arc::downgrade(&slot);
        if !process.adopt(task) {
            slot.kill();
        }
        SimRuntime::spawn(Owned { slot, process })
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: SimInstant) -> Self::Sleep {
        SimRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: SimInstant, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(SimRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }
}

/// Virtual time since the start, µs; 0 outside of a simulation.
pub fn now_us() -> u64 {
    SimInstant::try_now().map_or(0, |now| now.elapsed_since_start().as_micros() as u64)
}

/// Lets virtual time pass.
pub async fn sleep_us(us: u64) {
    NodeRt::sleep(Duration::from_micros(us)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    #[test]
    fn a_kill_drops_every_task_of_the_process_and_no_other() {
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                DROPPED.fetch_add(1, Relaxed);
            }
        }
        NodeRt::with_seed(1).block_on(async {
            let process = Arc::new(Process::default());
            let ticks = Arc::new(AtomicU64::new(0));
            let mine = ticks.clone();
            let _outer = process.spawn(async move {
                let guard = Guard;
                let _inner = NodeRt::spawn(async move {
                    let _guard = guard;
                    loop {
                        sleep_us(10).await;
                        mine.fetch_add(1, Relaxed);
                    }
                });
                std::future::pending::<()>().await;
            });
            let world = NodeRt::spawn(async { sleep_us(1000).await });
            sleep_us(105).await;
            assert_eq!((ticks.load(Relaxed), DROPPED.load(Relaxed)), (10, 0));
            process.kill();
            assert_eq!(DROPPED.load(Relaxed), 1);
            let _late = process.spawn(async { panic!("a dead process starts nothing") });
            world.await.unwrap();
            assert_eq!(ticks.load(Relaxed), 10);
        });
    }
}
