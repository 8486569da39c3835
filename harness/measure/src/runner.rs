//! The interleaved protocol: warm everything up, then run every contender once per round, in a new random order each round.
//!
//! What disturbs the machine for a while then disturbs all contenders alike, and two samples of the same round are a pair.
//! Nothing is dropped: outliers stay. The same contender entered twice is an A/A run, which shows the noise floor.

use std::error::Error;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::record::Samples;
use crate::rng::Rng;

/// Why a contender failed.
pub type Failure = Box<dyn Error + Send + Sync>;

/// One of the things compared.
pub struct Contender<'a> {
    /// Its name in progress messages and errors.
    pub name: String,
    /// Does the work once and says how many nanoseconds the part that counts took.
    pub run: Box<dyn FnMut() -> Result<u64, Failure> + 'a>,
}

impl<'a> Contender<'a> {
    /// A contender.
    pub fn new(name: impl Into<String>, run: impl FnMut() -> Result<u64, Failure> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// How often to run, and when to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Runs of each contender before the first one that counts.
    pub warmup: u32,
    /// Rounds, unless the budget ends first.
    pub repetitions: u32,
    /// Rounds that are run even when the budget is over.
    pub min_repetitions: u32,
    /// No round is begun that would, at the pace so far, end after this (warm-up included).
    pub budget: Option<Duration>,
    /// Seed of the order within each round.
    pub seed: u64,
    /// What to do in a build with debug assertions.
    pub debug_builds: DebugBuilds,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            warmup: 1,
            repetitions: 5,
            min_repetitions: 3,
            budget: None,
            seed: crate::stats::SEED,
            debug_builds: DebugBuilds::Refuse,
        }
    }
}

/// Whether a build with debug assertions may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugBuilds {
    /// No: its numbers mean nothing.
    Refuse,
    /// Yes: for tests of the protocol, which look at no number.
    AllowInTests,
}

/// What is going on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A contender is about to warm up.
    WarmUp {
        /// Its name.
        name: &'a str,
    },
    /// A contender is about to run in a round.
    Start {
        /// Its name.
        name: &'a str,
        /// Round, from 0.
        round: u32,
        /// Rounds planned.
        rounds: u32,
    },
    /// A contender has run.
    Sample {
        /// Its index in the slice.
        contender: usize,
        /// Its name.
        name: &'a str,
        /// Round, from 0.
        round: u32,
        /// What it took.
        ns: u64,
    },
    /// A contender has failed, and runs no more.
    Failed {
        /// Its name.
        name: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// All that was measured of one contender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// The contender's name.
    pub name: String,
    /// Time of each run, with its round and its position within the round.
    pub samples: Vec<Sample>,
    /// Why it failed, if it did. Samples from before are kept.
    pub failed: Option<String>,
}

impl Series {
    /// The samples as a record holds them; a run made `tokens` tokens.
    pub fn to_samples(&self, tokens: u64) -> Samples {
        Samples {
            tokens,
            ns: self.samples.iter().map(|sample| sample.ns).collect(),
            rounds: self.samples.iter().map(|sample| sample.round).collect(),
            positions: self.samples.iter().map(|sample| sample.position).collect(),
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Round, from 0: samples of the same round are pairs.
    pub round: u32,
    /// Place in the round's order, from 0.
    pub position: u32,
    /// What it took.
    pub ns: u64,
}

/// Why the runner stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// All repetitions were done.
    Done,
    /// The time budget was used up.
    Budget,
    /// The progress callback asked for it (Ctrl-C).
    Interrupted,
    /// Every contender failed.
    AllFailed,
}

/// The result of a group of interleaved runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// One series per contender, in the order given.
    pub series: Vec<Series>,
    /// Complete rounds.
    pub rounds: u32,
    /// Why it ended.
    pub stopped: Stopped,
}

/// Why nothing was measured at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunError {
    /// A debug build.
    #[error("this is a debug build, whose timings mean nothing: build with --release to measure")]
    DebugBuild,
    /// Nothing to run.
    #[error("nothing to measure: no contender or no repetition")]
    Nothing,
}

/// Fails in a build with debug assertions: call it before doing slow work that only serves measuring.
///
/// # Errors
/// [`RunError::DebugBuild`].
pub fn refuse_debug_build(debug_builds: DebugBuilds) -> Result<(), RunError> {
    if cfg!(debug_assertions) && debug_builds == DebugBuilds::Refuse { Err(RunError::DebugBuild) } else { Ok(()) }
}

/// Runs the contenders by the plan. `progress` hears of every step and may stop it with `Break`.
///
/// # Errors
/// In a debug build, or without anything to do. A contender's own failure is in its series instead.
pub fn interleave(
    contenders: &mut [Contender<'_>],
    plan: &Plan,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Outcome, RunError> {
    refuse_debug_build(plan.debug_builds)?;
    if contenders.is_empty() || plan.repetitions == 0 {
        return Err(RunError::Nothing);
    }
    let start = Instant::now();
    let series =
        contenders.iter().map(|c| Series { name: c.name.clone(), samples: Vec::new(), failed: None }).collect();
    let mut outcome = Outcome { series, rounds: 0, stopped: Stopped::Done };
    if rounds(contenders, plan, start, &mut outcome, progress).is_break() {
        outcome.stopped = Stopped::Interrupted;
    }
    Ok(outcome)
}

fn rounds(
    contenders: &mut [Contender<'_>],
    plan: &Plan,
    start: Instant,
    outcome: &mut Outcome,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for (contender, series) in contenders.iter_mut().zip(&mut outcome.series) {
        for _ in 0..plan.warmup {
            if series.failed.is_none() {
                progress(Event::WarmUp { name: &contender.name })?;
                run_once(contender, series, progress)?;
            }
        }
    }
    let mut rng = Rng::new(plan.seed);
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    let measuring = Instant::now();
    for round in 0..plan.repetitions {
        if outcome.series.iter().all(|series| series.failed.is_some()) {
            outcome.stopped = Stopped::AllFailed;
            break;
        }
        let round_time = measuring.elapsed() / round.max(1);
        if round >= plan.min_repetitions.max(1)
            && plan.budget.is_some_and(|budget| start.elapsed() + round_time > budget)
        {
            outcome.stopped = Stopped::Budget;
            break;
        }
        rng.shuffle(&mut order);
        for (position, &index) in order.iter().enumerate() {
            let (contender, series) = (&mut contenders[index], &mut outcome.series[index]);
            if series.failed.is_some() {
                continue;
            }
            progress(Event::Start { name: &contender.name, round, rounds: plan.repetitions })?;
            if let Some(ns) = run_once(contender, series, progress)?.0 {
                series.samples.push(Sample { round, position: position as u32, ns });
                progress(Event::Sample { contender: index, name: &contender.name, round, ns })?;
            }
        }
        outcome.rounds = round + 1;
    }
    ControlFlow::Continue(())
}

/// The result of one run, for `?` on the callback's wish to stop.
struct Ran(Option<u64>);

fn run_once(
    contender: &mut Contender<'_>,
    series: &mut Series,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), Ran> {
    match (contender.run)() {
        Ok(ns) => ControlFlow::Continue(Ran(Some(ns))),
        Err(error) => {
            let reason = error.to_string();
            series.failed = Some(reason.clone());
            progress(Event::Failed { name: &contender.name, reason: &reason })?;
            ControlFlow::Continue(Ran(None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn plan(repetitions: u32) -> Plan {
        Plan { repetitions, debug_builds: DebugBuilds::AllowInTests, ..Plan::default() }
    }

    fn quiet(_: Event<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn a_debug_build_refuses() {
        let mut contenders = [Contender::new("a", || Ok(1))];
        let result = interleave(&mut contenders, &Plan::default(), &mut quiet);
        assert_eq!(result.is_err(), cfg!(debug_assertions));
        if let Err(error) = result {
            assert!(error.to_string().contains("--release"));
        }
        assert_eq!(interleave(&mut [], &plan(3), &mut quiet), Err(RunError::Nothing));
    }

    #[test]
    fn every_round_runs_everyone_once_in_a_changing_order() {
        let log = RefCell::new(Vec::new());
        let mut contenders: Vec<_> = (0..3_u64)
            .map(|i| {
                let log = &log;
                Contender::new(format!("c{i}"), move || {
                    log.borrow_mut().push(i);
                    Ok(100 + i)
                })
            })
            .collect();
        let outcome = interleave(&mut contenders, &plan(20), &mut quiet).expect("runs");
        assert_eq!((outcome.rounds, outcome.stopped), (20, Stopped::Done));
        let log = log.borrow();
        assert_eq!(log[..3], [0, 1, 2], "warm-up");
        let mut orders = std::collections::BTreeSet::new();
        for round in log[3..].chunks(3) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2]);
            orders.insert(round.to_vec());
        }
        assert!(orders.len() >= 4, "{orders:?}");
        for (i, series) in outcome.series.iter().enumerate() {
            let samples = series.to_samples(10);
            assert_eq!(samples.rounds, (0..20).collect::<Vec<_>>());
            assert!(samples.ns.iter().all(|&ns| ns == 100 + i as u64));
        }
        // The same seed gives the same order.
        let positions: Vec<u32> = outcome.series[0].samples.iter().map(|sample| sample.position).collect();
        let mut again = [Contender::new("a", || Ok(1)), Contender::new("b", || Ok(1)), Contender::new("c", || Ok(1))];
        let again = interleave(&mut again, &plan(20), &mut quiet).expect("runs");
        assert_eq!(positions, again.series[0].samples.iter().map(|sample| sample.position).collect::<Vec<_>>());
    }

    #[test]
    fn a_failure_is_a_row_and_the_others_go_on() {
        let mut runs = 0;
        let mut contenders = [
            Contender::new("good", || Ok(1)),
            Contender::new("bad", || {
                runs += 1;
                if runs > 3 { Err("out of luck".into()) } else { Ok(2) }
            }),
        ];
        let outcome = interleave(&mut contenders, &plan(10), &mut quiet).expect("runs");
        assert_eq!(outcome.series[0].samples.len(), 10);
        assert_eq!(outcome.series[1].samples.len(), 2);
        assert_eq!(outcome.series[1].failed.as_deref(), Some("out of luck"));
        let mut all_bad = [Contender::new("bad", || Err("no".into()))];
        let outcome = interleave(&mut all_bad, &plan(10), &mut quiet).expect("runs");
        assert_eq!(outcome.stopped, Stopped::AllFailed);
    }

    #[test]
    fn a_budget_ends_after_the_least_number_of_rounds() {
        let mut contenders = [Contender::new("slow", || {
            std::thread::sleep(Duration::from_millis(5));
            Ok(5_000_000)
        })];
        let short = Plan { budget: Some(Duration::from_millis(1)), ..plan(1000) };
        let outcome = interleave(&mut contenders, &short, &mut quiet).expect("runs");
        assert_eq!((outcome.rounds, outcome.stopped), (3, Stopped::Budget));
    }

    #[test]
    fn an_interrupt_keeps_what_was_measured() {
        let mut contenders = [Contender::new("a", || Ok(1)), Contender::new("b", || Ok(2))];
        let mut samples = 0;
        let outcome = interleave(&mut contenders, &plan(100), &mut |event| {
            samples += u32::from(matches!(event, Event::Sample { .. }));
            if samples == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("runs");
        assert_eq!((outcome.rounds, outcome.stopped), (2, Stopped::Interrupted));
        assert_eq!(outcome.series.iter().map(|series| series.samples.len()).sum::<usize>(), 5);
    }
}
