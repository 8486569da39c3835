//! The interleaved protocol: warm everything up, then run every contender once per round, in a new random order each round.
//!
//! What disturbs the machine for a while then disturbs all contenders alike, and two samples of the same round are a pair.
//! Nothing is dropped: outliers stay. One contender can run twice in every round ([`Plan::twin`]): that A/A run shows the noise.

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::interrupt;
pub use crate::plan::{DebugBuilds, Plan, Stopped};
use crate::record::Samples;
use crate::rng::Rng;

/// Why a contender failed.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What the part of a run that counts took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Nanoseconds of the monotonic clock.
    pub ns: u64,
    /// Joules, where they were measured.
    pub joules: Option<f64>,
}

/// One of the things compared.
pub struct Contender<'a> {
    /// Its name in progress messages and errors.
    pub name: String,
    /// Does the work once and says what the part that counts took.
    pub run: Box<dyn FnMut() -> Result<Cost, Failure> + 'a>,
}

impl<'a> Contender<'a> {
    /// A contender that says how many nanoseconds it took.
    pub fn new(name: impl Into<String>, mut run: impl FnMut() -> Result<u64, Failure> + 'a) -> Self {
        Self::metered(name, move || run().map(|ns| Cost { ns, joules: None }))
    }

    /// A contender that says what energy it took as well.
    pub fn metered(name: impl Into<String>, run: impl FnMut() -> Result<Cost, Failure> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
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
        /// Whether this was its second run in the round.
        twin: bool,
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
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The contender's name.
    pub name: String,
    /// Time of each run, with its round and its position within the round.
    pub samples: Vec<Sample>,
    /// Why it failed, if it did. Samples from before are kept.
    pub failed: Option<String>,
}

impl Series {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), samples: Vec::new(), failed: None }
    }

    /// The samples as a record holds them; a run made `tokens` tokens.
    pub fn to_samples(&self, tokens: u64) -> Samples {
        Samples {
            tokens,
            ns: self.samples.iter().map(|sample| sample.ns).collect(),
            rounds: self.samples.iter().map(|sample| sample.round).collect(),
            positions: self.samples.iter().map(|sample| sample.position).collect(),
        }
    }

    /// Joules of every sample; empty where one of them was not measured.
    pub fn joules(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.joules).collect::<Option<_>>().unwrap_or_default()
    }

    /// The times of this series and another one in the rounds that both have.
    pub fn pairs_with(&self, other: &Self) -> Vec<(f64, f64)> {
        let in_round = |round| other.samples.iter().find(move |sample| sample.round == round);
        let pair = |mine: &Sample| in_round(mine.round).map(|theirs| (mine.ns as f64, theirs.ns as f64));
        self.samples.iter().filter_map(pair).collect()
    }
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Round, from 0: samples of the same round are pairs.
    pub round: u32,
    /// Place in the round's order, from 0.
    pub position: u32,
    /// What it took.
    pub ns: u64,
    /// What energy it took, where that was measured.
    pub joules: Option<f64>,
}

/// The result of a group of interleaved runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// One series per contender, in the order given.
    pub series: Vec<Series>,
    /// The contender that ran twice in every round, and its second series.
    pub twin: Option<(usize, Series)>,
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
    let series: Vec<Series> = contenders.iter().map(|c| Series::new(&c.name)).collect();
    let mut outcome = Outcome { series, twin: None, rounds: 0, stopped: Stopped::Done };
    if warm_up(contenders, plan, &mut outcome, progress).is_break()
        || rounds(contenders, plan, start, &mut outcome, progress).is_break()
    {
        outcome.stopped = Stopped::Interrupted;
    }
    Ok(outcome)
}

/// Runs everyone unmeasured, and chooses who runs twice: the fastest, because it costs least and noise shows most in it.
fn warm_up(
    contenders: &mut [Contender<'_>],
    plan: &Plan,
    outcome: &mut Outcome,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut fastest: Option<(u64, usize)> = None;
    for (index, (contender, series)) in contenders.iter_mut().zip(&mut outcome.series).enumerate() {
        let mut last = 0;
        for _ in 0..plan.warmup {
            if series.failed.is_none() {
                progress(Event::WarmUp { name: &contender.name })?;
                last = run_once(contender, series, progress)?.0.map_or(last, |cost| cost.ns);
            }
        }
        if series.failed.is_none() && fastest.is_none_or(|(ns, _)| last < ns) {
            fastest = Some((last, index));
        }
    }
    if let (true, Some((_, index))) = (plan.twin, fastest) {
        outcome.twin = Some((index, Series::new(&contenders[index].name)));
    }
    ControlFlow::Continue(())
}

fn rounds(
    contenders: &mut [Contender<'_>],
    plan: &Plan,
    start: Instant,
    outcome: &mut Outcome,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut rng = Rng::new(plan.seed);
    // The twin has the place behind the last contender.
    let twin = contenders.len();
    let mut order: Vec<usize> = (0..twin + usize::from(outcome.twin.is_some())).collect();
    let measuring = Instant::now();
    for round in 0..plan.repetitions {
        if outcome.series.iter().all(|series| series.failed.is_some()) {
            outcome.stopped = Stopped::AllFailed;
            break;
        }
        if plan.is_narrow(round, &outcome.series) {
            outcome.stopped = Stopped::Narrow;
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
        for (position, &place) in order.iter().enumerate() {
            let (index, series) = match &mut outcome.twin {
                Some((index, series)) if place == twin => (*index, series),
                _ => (place, &mut outcome.series[place]),
            };
            let contender = &mut contenders[index];
            if series.failed.is_some() {
                continue;
            }
            progress(Event::Start { name: &contender.name, round, rounds: plan.repetitions })?;
            if let Some(Cost { ns, joules }) = run_once(contender, series, progress)?.0 {
                series.samples.push(Sample { round, position: position as u32, ns, joules });
                let is_twin = place == twin;
                progress(Event::Sample { contender: index, twin: is_twin, name: &contender.name, round, ns })?;
            }
        }
        outcome.rounds = round + 1;
    }
    ControlFlow::Continue(())
}

/// The result of one run, for `?` on the callback's wish to stop.
struct Ran(Option<Cost>);

fn run_once(
    contender: &mut Contender<'_>,
    series: &mut Series,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), Ran> {
    match (contender.run)() {
        Ok(cost) => ControlFlow::Continue(Ran(Some(cost))),
        // A run that Ctrl-C cut short has not failed.
        Err(_) if interrupt::requested() => ControlFlow::Break(()),
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
    use std::time::Duration;

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
    fn the_fastest_has_a_twin_in_every_round_at_changing_places() {
        let mut contenders =
            [Contender::new("slow", || Ok(300)), Contender::new("fast", || Ok(100)), Contender::new("b", || Ok(200))];
        let plan = Plan { twin: true, ..plan(30) };
        let outcome = interleave(&mut contenders, &plan, &mut quiet).expect("runs");
        let (index, twin) = outcome.twin.expect("a twin");
        assert_eq!((index, twin.name.as_str()), (1, "fast"));
        let (first, second) = (&outcome.series[1].samples, &twin.samples);
        assert_eq!(outcome.series[1].pairs_with(&twin), vec![(100.0, 100.0); 30]);
        let twin_first = first.iter().zip(second).filter(|(a, b)| b.position < a.position).count();
        assert!((5..=25).contains(&twin_first), "{twin_first} of 30");
        let mut places: Vec<u32> = outcome.series.iter().chain([&twin]).map(|s| s.samples[7].position).collect();
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2, 3]);
    }

    #[test]
    fn narrow_intervals_end_it_early() {
        let mut contenders = [Contender::new("steady", || Ok(1000)), Contender::new("too", || Ok(2000))];
        let plan = Plan { precision: Some(0.01), ..plan(1000) };
        let outcome = interleave(&mut contenders, &plan, &mut quiet).expect("runs");
        assert_eq!((outcome.rounds, outcome.stopped), (crate::plan::MIN_ROUNDS_FOR_PRECISION, Stopped::Narrow));
        assert_eq!(plan.protocol(outcome.stopped, false).stopped, "narrow");
    }

    #[test]
    fn energy_is_kept_beside_the_time_or_not_at_all() {
        let mut odd = 0;
        let mut contenders = [
            Contender::metered("a", || Ok(Cost { ns: 1, joules: Some(0.5) })),
            Contender::metered("b", || {
                odd += 1;
                Ok(Cost { ns: 1, joules: (odd % 2 == 0).then_some(1.0) })
            }),
        ];
        let outcome = interleave(&mut contenders, &plan(3), &mut quiet).expect("runs");
        assert_eq!(outcome.series[0].joules(), [0.5; 3]);
        assert_eq!(outcome.series[1].joules(), [0.0; 0]);
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
