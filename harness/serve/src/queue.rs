//! The thread that runs the model, and how others reach it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};

use ternbench_model::batch::{Batch, Event, ForwardPass, Generate, RequestError, RequestId, Score};

use crate::error::ApiError;
use crate::http::TICK;

/// What the model can be asked.
#[derive(Debug)]
pub enum Work {
    /// To continue a prompt.
    Generate(Generate),
    /// To score given tokens.
    Score(Score),
}

/// What is said about [`Work`].
#[derive(Debug)]
pub enum Answer {
    /// It goes on, or is done.
    Event(Event),
    /// It was not taken.
    Refused(RequestError),
}

/// Work on its way to the model.
struct Job {
    work: Work,
    /// Comes back with every answer.
    which: usize,
    answers: Sender<(usize, Answer)>,
    alive: Weak<Place>,
}

/// Keeps a job alive: when it is dropped, the job is cancelled.
pub struct Place {
    open: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The way to the model, for any number of threads.
#[derive(Clone)]
pub struct Queue {
    jobs: Sender<Job>,
    open: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    max_open: usize,
}

/// The model's end of a [`Queue`].
pub struct Jobs {
    jobs: Receiver<Job>,
    cancelled: Arc<AtomicUsize>,
}

/// A queue that takes `max_open` jobs, those at work included.
pub fn queue(max_open: usize) -> (Queue, Jobs) {
    let (jobs, receiver) = std::sync::mpsc::channel();
    let cancelled = Arc::new(AtomicUsize::new(0));
    let queue = Queue { jobs, open: Arc::default(), cancelled: Arc::clone(&cancelled), max_open };
    (queue, Jobs { jobs: receiver, cancelled })
}

impl Queue {
    /// Most jobs that can be open at once.
    pub fn max_open(&self) -> usize {
        self.max_open
    }

    /// Jobs waiting or at work.
    pub fn n_open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Jobs that ended early: at a stop string, or because nobody waited for them any more.
    pub fn n_cancelled(&self) -> usize {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Takes `n` places, all or none.
    ///
    /// # Errors
    /// 429 when there are not so many.
    pub fn places(&self, n: usize) -> Result<Vec<Arc<Place>>, ApiError> {
        let take = |open: usize| (open + n <= self.max_open).then_some(open + n);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).map_err(|_| ApiError::busy())?;
        Ok((0..n).map(|_| Arc::new(Place { open: Arc::clone(&self.open) })).collect())
    }

    /// Sends work to the model; `answers` gets what comes of it, until `place` is dropped.
    ///
    /// # Errors
    /// 503 when the model has stopped.
    pub fn send(
        &self,
        work: Work,
        which: usize,
        place: &Arc<Place>,
        answers: &Sender<(usize, Answer)>,
    ) -> Result<(), ApiError> {
        let job = Job { work, which, answers: answers.clone(), alive: Arc::downgrade(place) };
        self.jobs.send(job).map_err(|_| ApiError::shutting_down())
    }
}

/// A job that the batch has taken.
struct Open {
    which: usize,
    answers: Sender<(usize, Answer)>,
    alive: Weak<Place>,
}

impl Jobs {
    /// Runs `batch` for all that comes, until every [`Queue`] is gone. `stopped` ends it at once: who still waits is told by the
    /// end of its channel.
    pub fn run<M: ForwardPass>(self, batch: &mut Batch<M>, stopped: &dyn Fn() -> bool) {
        let mut open: HashMap<RequestId, Open> = HashMap::new();
        while !stopped() {
            if batch.is_idle() {
                match self.jobs.recv_timeout(TICK) {
                    Ok(job) => take(batch, &mut open, job),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            self.jobs.try_iter().for_each(|job| take(batch, &mut open, job));
            open.retain(|&id, job| {
                let wanted = job.alive.strong_count() > 0;
                if !wanted && batch.cancel(id) {
                    self.cancelled.fetch_add(1, Ordering::Relaxed);
                }
                wanted
            });
            match batch.step() {
                Ok(events) => events.into_iter().for_each(|event| tell(&mut open, event)),
                Err(error) => {
                    // A defect. Everyone is told, and the model goes on with what comes next.
                    for id in open.keys().copied().collect::<Vec<_>>() {
                        batch.cancel(id);
                        tell(&mut open, Event::Failed { id, reason: error.to_string() });
                    }
                }
            }
        }
    }
}

fn take<M: ForwardPass>(batch: &mut Batch<M>, open: &mut HashMap<RequestId, Open>, job: Job) {
    let Job { work, which, answers, alive } = job;
    let taken = match work {
        Work::Generate(generate) => batch.generate(generate),
        Work::Score(score) => batch.score(score),
    };
    match taken {
        Ok(id) => drop(open.insert(id, Open { which, answers, alive })),
        // Nobody listens any more when this fails.
        Err(error) => drop(answers.send((which, Answer::Refused(error)))),
    }
}

fn tell(open: &mut HashMap<RequestId, Open>, event: Event) {
    let (Event::Token { id, .. } | Event::Finished { id, .. } | Event::Scored { id, .. } | Event::Failed { id, .. }) =
        event;
    let last = !matches!(event, Event::Token { .. });
    if let Some(job) = open.get(&id) {
        // Who does not listen any more has dropped its place, too.
        let _ = job.answers.send((job.which, Answer::Event(event)));
    }
    if last {
        open.remove(&id);
    }
}
