//! Ranking kernels: the geometric mean of their speed against the best, over the shapes that all of them ran.
//!
//! Exact and bounded kernels are ranked apart: a fast wrong answer is not first. Kernels are ranked per number of tokens, threads and
//! place of the weights, because the best at one token is rarely the best at a batch.

use std::collections::{BTreeMap, BTreeSet};

use ternbench_measure::Record;
use ternbench_measure::stats::{self, Compared, Estimate};

use crate::compare::Series;
use crate::sums::Sums;
use crate::table::{Kind, Table, Value, column};

/// One kernel's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// What was compared: `m = 1, 2 threads, cold`.
    pub class: String,
    /// What is known of the sums of this ranking's kernels.
    pub sums: Sums,
    /// Place from 1; `None` where shapes are missing.
    pub place: Option<usize>,
    /// The kernel.
    pub kernel: String,
    /// Geometric mean over shapes of its speed against that of the first.
    pub ratio: Option<Estimate>,
    /// Shapes that it ran.
    pub n_shapes: usize,
    /// Shapes that any kernel of the ranking ran.
    pub n_shapes_all: usize,
}

/// By class and exactness: kernel, then shape.
type Classes<'a> = BTreeMap<(String, Sums), BTreeMap<&'a str, BTreeMap<(usize, usize), &'a Series>>>;

/// Ranks the kernels that ran on matrices of their own.
pub fn rank(records: &[Record]) -> Vec<Place> {
    let all = Series::all(records);
    let mut classes: Classes<'_> = BTreeMap::new();
    for series in &all {
        let Some((n, k, m, cache)) = &series.matrix else { continue };
        let threads = series.contender.n_threads;
        let class = format!("m = {m}, {threads} thread{}, {cache}", if threads == 1 { "" } else { "s" });
        // A kernel that ran a shape twice counts with its last run.
        let kernels = classes.entry((class, series.contender.sums)).or_default();
        kernels.entry(&series.contender.kernel).or_default().insert((*n, *k), series);
    }
    classes.iter().flat_map(|((class, sums), kernels)| rank_class(class, *sums, kernels)).collect()
}

fn rank_class(class: &str, sums: Sums, kernels: &BTreeMap<&str, BTreeMap<(usize, usize), &Series>>) -> Vec<Place> {
    let shapes: BTreeSet<(usize, usize)> = kernels.values().flat_map(|of| of.keys().copied()).collect();
    let mean = |of: &BTreeMap<(usize, usize), &Series>| {
        let medians = of.values().filter_map(|series| stats::median(&series.rates)).collect::<Vec<_>>();
        stats::geometric_mean(&medians).unwrap_or(0.0)
    };
    let complete = kernels.iter().filter(|(_, of)| of.len() == shapes.len());
    let best = complete.max_by(|(_, a), (_, b)| mean(a).total_cmp(&mean(b)));
    let mut places: Vec<Place> = kernels
        .iter()
        .map(|(kernel, of)| {
            let against_best = best.filter(|_| of.len() == shapes.len()).and_then(|(_, best)| {
                let compared: Vec<Compared> = of.iter().map(|(shape, one)| one.beside(best[shape])).collect();
                stats::geometric_mean_ratio(&compared, stats::SEED)
            });
            Place {
                class: class.to_owned(),
                sums,
                place: None,
                kernel: (*kernel).to_owned(),
                ratio: against_best,
                n_shapes: of.len(),
                n_shapes_all: shapes.len(),
            }
        })
        .collect();
    let value = |place: &Place| place.ratio.map_or(0.0, |ratio| ratio.value);
    places.sort_by(|a, b| value(b).total_cmp(&value(a)));
    for (i, place) in places.iter_mut().enumerate().filter(|(_, place)| place.ratio.is_some()) {
        place.place = Some(i + 1);
    }
    places
}

/// Places as a table.
pub fn table(places: &[Place]) -> Table {
    let columns = [
        column("class", "class", Kind::Text),
        column("exactness", "sums", Kind::Text),
        column("place", "place", Kind::Count),
        column("kernel", "kernel", Kind::Text),
        column("ratio", "speed of the best", Kind::Ratio),
        column("shapes", "shapes", Kind::Text),
    ];
    Table::new(columns).with_rows(places.iter().map(|place| {
        let shapes = format!("{} of {}", place.n_shapes, place.n_shapes_all);
        let place_number: Value = place.place.into();
        vec![
            place.class.clone().into(),
            place.sums.name().into(),
            place_number,
            place.kernel.clone().into(),
            place.ratio.into(),
            shapes.into(),
        ]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::test_records::{kernel, records};

    #[test]
    fn kernels_are_ranked_by_the_geometric_mean_and_bounded_ones_apart() {
        // Against the best, "b" is twice as slow on one shape and equal on the other: the mean is sqrt(1/2).
        let mut bounded = kernel("lossy", 10, 10, 1, &[1; 5]);
        bounded.code.exact = false;
        let made = records([
            kernel("a", 10, 10, 1, &[100; 5]).into(),
            kernel("a", 20, 10, 1, &[200; 5]).into(),
            kernel("b", 10, 10, 1, &[200; 5]).into(),
            kernel("b", 20, 10, 1, &[200; 5]).into(),
            kernel("half", 10, 10, 1, &[10; 5]).into(),
            bounded.into(),
        ]);
        let places = rank(&made);
        let shown: Vec<(&str, bool, Option<usize>)> =
            places.iter().map(|place| (place.kernel.as_str(), place.sums == Sums::Exact, place.place)).collect();
        assert_eq!(
            shown,
            [("a", true, Some(1)), ("b", true, Some(2)), ("half", true, None), ("lossy", false, Some(1))]
        );
        let ratio = places[1].ratio.expect("ranked");
        assert!((ratio.value - 0.5_f64.sqrt()).abs() < 1e-9, "{ratio:?}");
        assert!(table(&places).markdown().contains("| half | – | – | – | 1 of 2 |"), "{}", table(&places).markdown());
    }

    #[test]
    fn batches_and_threads_are_ranked_apart() {
        let made = records([kernel("a", 10, 10, 1, &[100; 5]).into(), kernel("b", 10, 10, 128, &[100; 5]).into()]);
        assert!(rank(&made).iter().all(|place| place.place == Some(1)));
    }
}
