//! Statistics of an evaluation.

use serde::Serialize;

/// A score over all items.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// What was measured: `acc`, `acc_norm`, an extractor's name, `perplexity`.
    pub name: String,
    /// The score; accuracies lie between 0 and 1.
    pub value: f64,
    /// Its standard error, where there are enough items for one.
    pub stderr: Option<f64>,
    /// Of an accuracy: where 95 % of resampled ones lie.
    pub interval: Option<[f64; 2]>,
}

/// Resamples of a bootstrap: enough for two stable digits of a 95 % interval.
const RESAMPLES: usize = 2000;

/// The 95 % percentile interval of the mean of `values` under resampling of items (Efron 1979); the same values give the same
/// interval. `None` for fewer than two values.
pub fn bootstrap(values: &[f64]) -> Option<[f64; 2]> {
    let n = values.len();
    if n < 2 {
        return None;
    }
    // SplitMix64 (Steele et al. 2014).
    let mut state = n as u64;
    let mut below_n = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    };
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| (0..n).map(|_| values[below_n()]).sum::<f64>() / n as f64).collect();
    means.sort_unstable_by(f64::total_cmp);
    let cut = RESAMPLES / 40;
    Some([means[cut], means[RESAMPLES - 1 - cut]])
}

/// McNemar's exact test (1947): how likely so uneven a split of the items that one run has right and the other wrong is, if
/// either way were equally likely. Two-sided.
pub fn mcnemar(only_a: usize, only_b: usize) -> f64 {
    let (n, fewer) = (only_a + only_b, only_a.min(only_b));
    // Σ C(n, i) / 2^n by logarithms, so that no n is too large.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for i in 0..=fewer {
        tail += log_term.exp();
        log_term += ((n - i) as f64 / (i + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

/// Counts right answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accuracy {
    /// Items seen.
    pub n: usize,
    /// Right ones.
    pub correct: usize,
}

impl Accuracy {
    /// One more item.
    pub fn add(&mut self, correct: bool) {
        self.n += 1;
        self.correct += usize::from(correct);
    }

    /// The share of right answers; 0 without any.
    pub fn value(self) -> f64 {
        if self.n == 0 { 0.0 } else { self.correct as f64 / self.n as f64 }
    }

    /// `sqrt(p (1 - p) / (n - 1))`, the sample standard error of a mean of zeros and ones.
    pub fn stderr(self) -> Option<f64> {
        let p = self.value();
        (self.n > 1).then(|| (p * (1.0 - p) / (self.n - 1) as f64).sqrt())
    }

    /// As a named score.
    pub fn metric(self, name: &str) -> Metric {
        let mut values = vec![0.0; self.n];
        values[..self.correct].fill(1.0);
        Metric { name: name.to_owned(), value: self.value(), stderr: self.stderr(), interval: bootstrap(&values) }
    }
}

/// Sums of negative log-likelihoods per token, for a perplexity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogLoss {
    /// Tokens scored.
    pub n: usize,
    /// Sum of the tokens' negative log-likelihoods.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl LogLoss {
    /// One more token.
    pub fn add(&mut self, log_prob: f32) {
        let loss = -f64::from(log_prob);
        self.n += 1;
        self.sum += loss;
        self.squares += loss * loss;
    }

    /// The tokens of `other` as well.
    pub fn merge(&mut self, other: Self) {
        self.n += other.n;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// `exp` of the mean loss, and its standard error by the delta method, as llama.cpp reports them.
    pub fn perplexity(self) -> Metric {
        let mean = self.sum / self.n.max(1) as f64;
        let value = mean.exp();
        let variance = self.squares / self.n.max(1) as f64 - mean * mean;
        let stderr = (self.n > 1).then(|| value * (variance.max(0.0) / (self.n - 1) as f64).sqrt());
        Metric { name: "perplexity".to_owned(), value, stderr, interval: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_by_hand() {
        let mut accuracy = Accuracy::default();
        assert_eq!((accuracy.value(), accuracy.stderr()), (0.0, None));
        accuracy.add(true);
        assert_eq!((accuracy.value(), accuracy.stderr()), (1.0, None));
        for correct in [true, true, false] {
            accuracy.add(correct);
        }
        // p = 3/4, n = 4: sqrt(3/16 / 3) = 1/4.
        assert_eq!((accuracy.value(), accuracy.stderr()), (0.75, Some(0.25)));
    }

    #[test]
    fn bootstrap_intervals_cover_as_normal_ones_do() {
        let mut values = vec![0.0; 1000];
        values[..640].fill(1.0);
        let [low, high] = bootstrap(&values).unwrap();
        let stderr = Accuracy { n: 1000, correct: 640 }.stderr().unwrap();
        assert!((low - (0.64 - 1.96 * stderr)).abs() < 0.003, "{low}");
        assert!((high - (0.64 + 1.96 * stderr)).abs() < 0.003, "{high}");
        assert_eq!(bootstrap(&values), Some([low, high]));
        assert_eq!((bootstrap(&[1.0; 5]), bootstrap(&[1.0])), (Some([1.0, 1.0]), None));
    }

    #[test]
    fn mcnemar_by_hand() {
        assert_eq!((mcnemar(0, 0), mcnemar(3, 3), mcnemar(1, 0)), (1.0, 1.0, 1.0));
        // 2 (1 + 10) / 2^10.
        assert!((mcnemar(1, 9) - 22.0 / 1024.0).abs() < 1e-12);
        assert_eq!(mcnemar(9, 1), mcnemar(1, 9));
        // By exact fractions; 2^2000 is beyond f64.
        assert!((mcnemar(30, 60) - 0.002_060_265).abs() < 1e-8, "{}", mcnemar(30, 60));
        assert!((mcnemar(900, 1100) / 8.457_089e-6 - 1.0).abs() < 1e-6, "{}", mcnemar(900, 1100));
    }

    #[test]
    fn perplexity_by_hand() {
        let mut loss = LogLoss::default();
        for p in [0.5_f32, 0.125] {
            loss.add(p.ln());
        }
        let metric = loss.perplexity();
        // The geometric mean of 1/2 and 1/8 is 1/4; the losses differ from their mean by ln 2 each.
        assert!((metric.value - 4.0).abs() < 1e-6);
        assert!((metric.stderr.unwrap() - 4.0 * 2.0_f64.ln()).abs() < 1e-5);
    }
}
