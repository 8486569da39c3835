//! Two runs on the same items, paired: never two bare percentages.

use serde::Serialize;

use crate::items::Line;
use crate::stats::{self, Accuracy};

/// What pairing gave for one metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The metric.
    pub metric: String,
    /// Accuracy of the first run.
    pub a: f64,
    /// Accuracy of the second run.
    pub b: f64,
    /// Items that only the first has right.
    pub only_a: usize,
    /// Items that only the second has right.
    pub only_b: usize,
    /// `a - b`.
    pub difference: f64,
    /// Its 95 % interval under resampling of items.
    pub interval: Option<[f64; 2]>,
    /// McNemar's exact p: how likely so uneven a split is between equals.
    pub p: f64,
}

/// Two runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison<'l> {
    /// Items in both.
    pub n: usize,
    /// Every metric, the headline one first.
    pub metrics: Vec<Paired>,
    /// Items that some metric judges differently.
    pub differing: Vec<(&'l Line, &'l Line)>,
    /// Items whose recorded answer differs in any way, log-likelihoods and generated tokens included.
    pub n_not_identical: usize,
}

/// Pairs two runs. Both must be of the same items, prompt for prompt.
pub fn compare<'l>(a: &'l [Line], b: &'l [Line]) -> Result<Comparison<'l>, String> {
    let (Some(first_a), Some(first_b)) = (a.first(), b.first()) else {
        return Err("a run without items cannot be compared".to_owned());
    };
    for field in ["task", "task_version"] {
        if first_a.get(field) != first_b.get(field) {
            return Err(format!("the {field} differs: nothing can be paired"));
        }
    }
    let names: Vec<&str> = first_a.verdicts().iter().map(|(name, _)| *name).collect();
    if names.is_empty() {
        return Err("items of this task are not right or wrong: nothing can be paired".to_owned());
    }
    if a.len() != b.len() {
        return Err(format!("the first run has {} items, the second {}: compare runs of the same", a.len(), b.len()));
    }
    for (a, b) in a.iter().zip(b) {
        if a.index != b.index || a.get("prompt_sha256") != b.get("prompt_sha256") {
            return Err(format!("item {} of one run and {} of the other have other prompts", a.index, b.index));
        }
        if [a, b].iter().any(|line| line.verdicts().iter().map(|(name, _)| *name).ne(names.iter().copied())) {
            return Err(format!("item {} has other metrics than the first", a.index));
        }
    }
    let metrics = names.iter().enumerate().map(|(i, name)| pair(name, i, a, b)).collect();
    let pairs = || a.iter().zip(b);
    let answer = |line: &Line| ["loglikelihood", "generated_ids"].map(|field| line.get(field).cloned());
    Ok(Comparison {
        n: a.len(),
        metrics,
        differing: pairs().filter(|(a, b)| a.verdicts() != b.verdicts()).collect(),
        n_not_identical: pairs().filter(|(a, b)| answer(a) != answer(b)).count(),
    })
}

fn pair(name: &str, i: usize, a: &[Line], b: &[Line]) -> Paired {
    let right = |lines: &[Line]| lines.iter().map(|line| line.verdicts()[i].1).collect::<Vec<_>>();
    let (right_a, right_b) = (right(a), right(b));
    let count = |wanted: (bool, bool)| right_a.iter().zip(&right_b).filter(|(a, b)| (**a, **b) == wanted).count();
    let (only_a, only_b) = (count((true, false)), count((false, true)));
    let accuracy =
        |right: &[bool]| Accuracy { n: right.len(), correct: right.iter().filter(|right| **right).count() }.value();
    let differences: Vec<f64> =
        right_a.iter().zip(&right_b).map(|(a, b)| f64::from(i8::from(*a) - i8::from(*b))).collect();
    Paired {
        metric: name.to_owned(),
        a: accuracy(&right_a),
        b: accuracy(&right_b),
        only_a,
        only_b,
        difference: (only_a as f64 - only_b as f64) / a.len() as f64,
        interval: stats::bootstrap(&differences),
        p: stats::mcnemar(only_a, only_b),
    }
}

/// By how much the likeliest choice leads the next, negative where the right one does not lead: how sure a verdict is.
pub fn gap(line: &Line) -> Option<f64> {
    let scores: Vec<f64> = line.get("loglikelihood")?.as_array()?.iter().filter_map(|value| value.as_f64()).collect();
    let gold = line.number("gold")? as usize;
    let others = scores.iter().enumerate().filter(|(i, _)| *i != gold).map(|(_, score)| *score);
    Some(scores.get(gold)? - others.fold(f64::NEG_INFINITY, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(right: &[(u8, u8)]) -> Vec<Line> {
        let line = |(i, (acc, norm)): (usize, &(u8, u8))| {
            let (l0, l1) = if *acc == 1 { (-2.5, -3.0) } else { (-3.0, -2.75) };
            let raw = format!(
                r#"{{"task":"t","task_version":1,"index":{i},"prompt_sha256":"p{i}","gold":0,"loglikelihood":[{l0},{l1}],"acc":{acc},"acc_norm":{norm},"acc_bytes":{norm}}}"#
            );
            Line::parse(&raw).unwrap()
        };
        right.iter().enumerate().map(line).collect()
    }

    #[test]
    fn items_are_paired() {
        let a = run(&[(1, 1), (1, 1), (1, 0), (0, 0), (1, 1)]);
        let b = run(&[(1, 1), (0, 1), (0, 1), (1, 0), (0, 1)]);
        let comparison = compare(&a, &b).unwrap();
        assert_eq!((comparison.n, comparison.n_not_identical), (5, 4));
        assert_eq!(comparison.differing.iter().map(|(a, _)| a.index).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let acc = &comparison.metrics[0];
        assert_eq!((acc.metric.as_str(), acc.a, acc.b, acc.only_a, acc.only_b), ("acc", 0.8, 0.4, 3, 1));
        assert!((acc.difference - 0.4).abs() < 1e-12);
        assert!((acc.p - 0.625).abs() < 1e-12, "2 (1 + 4) / 16");
        let [low, high] = acc.interval.unwrap();
        assert!((-0.5..=0.4).contains(&low) && (0.4..=1.0).contains(&high));
        assert_eq!(comparison.metrics[1].metric, "acc_norm");
        assert_eq!((gap(&a[0]), gap(&b[1])), (Some(0.5), Some(-0.25)));
    }

    #[test]
    fn equal_runs_do_not_differ() {
        let a = run(&[(1, 1), (0, 1)]);
        let comparison = compare(&a, &a).unwrap();
        assert!(comparison.differing.is_empty());
        assert_eq!((comparison.metrics[0].difference, comparison.metrics[0].p), (0.0, 1.0));
    }

    #[test]
    fn other_items_are_refused() {
        let a = run(&[(1, 1), (0, 1)]);
        assert!(compare(&a, &a[..1]).unwrap_err().contains("2 items, the second 1"));
        assert!(compare(&[], &a).is_err());
        let other = |from: &str, to: &str| {
            a.iter().map(|line| Line::parse(&line.raw.replace(from, to)).unwrap()).collect::<Vec<_>>()
        };
        assert!(compare(&a, &other("\"p1\"", "\"q\"")).unwrap_err().contains("item 1"));
        assert!(compare(&a, &other("\"t\"", "\"u\"")).unwrap_err().contains("task"));
        assert!(compare(&a, &other("\"task_version\":1", "\"task_version\":2")).unwrap_err().contains("task_version"));
    }
}
