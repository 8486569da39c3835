//! Statistics small enough to read: median, MAD, intervals, paired ratios, geometric means.
//!
//! The interval of a median, and so of a paired ratio, lies between two of the sorted samples: the sign test turned round, which holds
//! its level for every distribution. Where several medians meet (a geometric mean, an unpaired ratio) each is resampled, with a
//! fixed seed, so that the same samples always give the same interval. With 5 samples an interval is their minimum and
//! maximum, which holds the true median in 94 of 100 cases rather than 95; with 3, in 75. Tables therefore always show n.

use crate::rng::Rng;

/// Resamples per interval: the ends of a 95 % interval then rest on 50 resamples each side.
pub const RESAMPLES: usize = 2000;
/// How sure an interval is.
pub const CONFIDENCE: f64 = 0.95;
/// Seed of every bootstrap.
pub const SEED: u64 = 0x7465_726E;
/// Above this many samples a resample draws only this many, and what it deviates by is scaled by the square root of the ratio: the
/// spread of a median shrinks like that. So the time of an interval has a bound, and 100,000 samples are reported in seconds.
const MAX_DRAWS: usize = 1024;

/// An estimate with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The estimate from all samples.
    pub value: f64,
    /// Low end of the interval.
    pub low: f64,
    /// High end of the interval.
    pub high: f64,
    /// Samples (or pairs) behind it.
    pub n: usize,
}

impl Estimate {
    /// A number that is known exactly.
    pub fn exact(value: f64) -> Self {
        Self { value, low: value, high: value, n: 1 }
    }

    /// `1 / self`, for turning a ratio of times into a ratio of speeds. For positive estimates.
    pub fn recip(self) -> Self {
        Self { value: 1.0 / self.value, low: 1.0 / self.high, high: 1.0 / self.low, n: self.n }
    }

    /// `self` times a positive number.
    pub fn scale(self, factor: f64) -> Self {
        Self { value: self.value * factor, low: self.low * factor, high: self.high * factor, n: self.n }
    }
}

/// The median: the middle sample, or the mean of the middle two. `None` without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    median_in_place(&mut samples.to_vec())
}

fn median_in_place(samples: &mut [f64]) -> Option<f64> {
    let n = samples.len();
    if n == 0 {
        return None;
    }
    let (below, upper, _) = samples.select_nth_unstable_by(n / 2, f64::total_cmp);
    let upper = *upper;
    if n % 2 == 1 {
        return Some(upper);
    }
    let lower = below.iter().copied().max_by(f64::total_cmp)?;
    Some((lower + upper) / 2.0)
}

/// The median absolute deviation from the median, not rescaled to a standard deviation. `None` without samples.
pub fn mad(samples: &[f64]) -> Option<f64> {
    let centre = median(samples)?;
    let mut deviations: Vec<f64> = samples.iter().map(|x| (x - centre).abs()).collect();
    median_in_place(&mut deviations)
}

/// The median with its 95 % interval: the narrowest pair of sorted samples, as far from either end, that the true median is between with at
/// least that probability, whatever the distribution (the sign test's; Conover, Practical Nonparametric Statistics, 3.2). Minimum and
/// maximum where there are too few samples for one. `None` without samples.
pub fn median_interval(samples: &[f64]) -> Option<Estimate> {
    let value = median(samples)?;
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let outside = outside(sorted.len());
    Some(Estimate { value, low: sorted[outside], high: sorted[sorted.len() - 1 - outside], n: sorted.len() })
}

/// How many of `n` sorted samples lie beyond each end of a median's interval: one less than the largest r with
/// P(fewer than r of n fair coins show heads) within the tail, so that sample r, counted from 1, is the end.
fn outside(n: usize) -> usize {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    // Term by term in logarithms: 2^-n underflows for many samples.
    let (mut term, mut below) = (-(n as f64) * std::f64::consts::LN_2, 0.0);
    for r in 0..n / 2 {
        below += term.exp();
        if below > tail {
            return r.saturating_sub(1);
        }
        term += ((n - r) as f64 / (r + 1) as f64).ln();
    }
    0
}

/// A median that can be drawn anew.
struct Resampled {
    samples: Vec<f64>,
    value: f64,
    scratch: Vec<f64>,
}

impl Resampled {
    /// `None` without samples.
    fn new(samples: Vec<f64>) -> Option<Self> {
        let (value, draws) = (median(&samples)?, samples.len().min(MAX_DRAWS));
        Some(Self { samples, value, scratch: vec![0.0; draws] })
    }

    /// The median of a resample.
    fn draw(&mut self, rng: &mut Rng) -> f64 {
        let (n, draws) = (self.samples.len(), self.scratch.len());
        self.scratch.fill_with(|| self.samples[rng.below(n)]);
        let drawn = median_in_place(&mut self.scratch).unwrap_or(self.value);
        if draws == n { drawn } else { self.value + (drawn - self.value) * (draws as f64 / n as f64).sqrt() }
    }
}

/// Samples of two contenders, to take a ratio of.
#[derive(Clone, Debug, PartialEq)]
pub enum Compared {
    /// Measured in the same rounds: the ratio is the median of the ratios within rounds.
    Paired(Vec<(f64, f64)>),
    /// Measured apart: the ratio is that of the medians.
    Unpaired(Vec<f64>, Vec<f64>),
}

impl Compared {
    /// Pairs, or samples of the smaller side.
    pub fn n(&self) -> usize {
        match self {
            Self::Paired(pairs) => pairs.len(),
            Self::Unpaired(a, b) => a.len().min(b.len()),
        }
    }

    /// The ratio of the first to the second. `None` without samples, or when one is not positive.
    pub fn ratio(&self) -> Option<f64> {
        let (a, b) = self.medians()?;
        positive(a.value / b.map_or(1.0, |b| b.value))
    }

    /// The ratio with its interval: of pairs that of their median ratio, otherwise a bootstrap with this seed.
    pub fn interval(&self, seed: u64) -> Option<Estimate> {
        match self {
            Self::Paired(pairs) => {
                let ratio = median_interval(&pairs.iter().map(|(a, b)| a / b).collect::<Vec<_>>())?;
                let Estimate { value, low, high, .. } = ratio;
                [value, low, high].into_iter().all(|end| positive(end).is_some()).then_some(ratio)
            }
            Self::Unpaired(..) => resampled(std::slice::from_ref(self), seed),
        }
    }

    /// The median over which to resample, and that of what it is divided by.
    fn medians(&self) -> Option<(Resampled, Option<Resampled>)> {
        Some(match self {
            Self::Paired(pairs) => (Resampled::new(pairs.iter().map(|(a, b)| a / b).collect())?, None),
            Self::Unpaired(a, b) => (Resampled::new(a.clone())?, Some(Resampled::new(b.clone())?)),
        })
    }
}

/// A ratio that means something.
fn positive(ratio: f64) -> Option<f64> {
    (ratio.is_finite() && ratio > 0.0).then_some(ratio)
}

/// The geometric mean. `None` without values, or when one is not positive.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|&x| x.is_nan() || x <= 0.0) {
        return None;
    }
    Some((values.iter().map(|x| x.ln()).sum::<f64>() / values.len() as f64).exp())
}

/// The geometric mean of several ratios with its bootstrap interval; each is resampled on its own. Of one ratio it is that ratio.
/// `None` when there is none, or one has no samples.
pub fn geometric_mean_ratio(compared: &[Compared], seed: u64) -> Option<Estimate> {
    match compared {
        [one] => one.interval(seed),
        _ => resampled(compared, seed),
    }
}

fn resampled(compared: &[Compared], seed: u64) -> Option<Estimate> {
    let value = geometric_mean(&compared.iter().map(Compared::ratio).collect::<Option<Vec<_>>>()?)?;
    let mut medians = compared.iter().map(Compared::medians).collect::<Option<Vec<_>>>()?;
    let mut rng = Rng::new(seed);
    let mut means = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let drawn = medians.iter_mut().map(|(a, b)| {
            let a = a.draw(&mut rng);
            positive(a / b.as_mut().map_or(1.0, |b| b.draw(&mut rng)))
        });
        means.extend(geometric_mean(&drawn.collect::<Option<Vec<_>>>()?));
    }
    let (low, high) = ends(&mut means);
    Some(Estimate { value, low, high, n: compared.iter().map(Compared::n).sum() })
}

/// A proportion with its 95 % Wilson score interval, which stays within 0..1 and holds for small n too.
pub fn proportion(correct: u64, n: u64) -> Option<Estimate> {
    if n == 0 || correct > n {
        return None;
    }
    // The 0.975 quantile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    let (p, count) = (correct as f64 / n as f64, n as f64);
    let scale = 1.0 + Z * Z / count;
    let centre = (p + Z * Z / (2.0 * count)) / scale;
    let half = Z / scale * (p * (1.0 - p) / count + Z * Z / (4.0 * count * count)).sqrt();
    Some(Estimate { value: p, low: (centre - half).max(0.0), high: (centre + half).min(1.0), n: n as usize })
}

/// The 2.5 % and 97.5 % order statistics.
fn ends(values: &mut [f64]) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let low = (tail * values.len() as f64) as usize;
    (values[low], values[values.len() - 1 - low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_mads_by_hand() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(&[9.0, 1.0, 4.0, 6.0]), Some(5.0));
        // Deviations from 4 are 3, 0, 5, 1, 96: their median is 3. One wild outlier does not move it.
        assert_eq!(mad(&[1.0, 4.0, 9.0, 3.0, 100.0]), Some(3.0));
        assert_eq!(mad(&[2.0, 2.0, 2.0]), Some(0.0));
    }

    #[test]
    fn five_samples_give_their_minimum_and_maximum() {
        // All five lie on one side of the true median with probability 1/32 each way, above the tail of 1/40.
        let estimate = median_interval(&[14.0, 11.0, 12.0, 13.0, 10.0]).expect("samples");
        assert_eq!((estimate.value, estimate.low, estimate.high, estimate.n), (12.0, 10.0, 14.0, 5));
    }

    #[test]
    fn ranks_of_the_sign_test() {
        // As tables of the binomial have them: 1 of 6 and of 8, 2 of 9, 6 of 20, 10 of 30, 40 of 100, counted from 1.
        assert_eq!([1, 2, 5, 6, 8, 9, 20, 30, 100].map(|n| outside(n) + 1), [1, 1, 1, 1, 1, 2, 6, 10, 40]);
        // Beyond what 2^-n can be written as: close to n / 2 - 0.98 sqrt n.
        assert!((outside(100_000) as f64 - (50_000.0 - 0.98 * 100_000_f64.sqrt())).abs() < 2.0);
    }

    #[test]
    fn an_interval_covers_the_true_median_as_often_as_it_says() {
        let mut rng = Rng::new(1);
        let mut covered = 0;
        for _ in 0..400 {
            let samples: Vec<f64> = (0..31).map(|_| rng.below(1_000_000) as f64 / 1e6).collect();
            let estimate = median_interval(&samples).expect("samples");
            covered += u32::from(estimate.low <= 0.5 && 0.5 <= estimate.high);
        }
        // 97.06 % for 31 samples, give or take 0.8.
        assert!((378..=398).contains(&covered), "{covered} of 400");
    }

    #[test]
    fn many_samples_give_a_narrow_interval_around_the_median() {
        let samples: Vec<f64> = (0..20_000).map(|i| f64::from(i) / 20_000.0).collect();
        let estimate = median_interval(&samples).expect("samples");
        // The standard error of the median of a uniform is 1 / (2 sqrt n) = 0.00354.
        assert!((estimate.high - estimate.low - 2.0 * 1.96 * 0.00354).abs() < 0.002, "{estimate:?}");
    }

    #[test]
    fn a_ratio_of_many_pairs_is_as_narrow_as_its_median() {
        // The standard error of the median of a uniform, 1 / (2 sqrt n) = 0.00354, around 1.5.
        let ratios: Vec<f64> = (0..20_000).map(|i| 1.0 + f64::from(i) / 20_000.0).collect();
        let ratio = Compared::Paired(ratios.iter().map(|x| (x * 3.0, 3.0)).collect()).interval(SEED).expect("pairs");
        assert!((ratio.value - 1.5).abs() < 1e-4 && ratio.n == 20_000, "{ratio:?}");
        assert!((ratio.high - ratio.low - 2.0 * 1.96 * 0.00354).abs() < 0.002, "{ratio:?}");
    }

    #[test]
    fn pairs_cancel_what_both_suffer() {
        // Both slow down together by up to 3 times; the ratio stays 2.
        let pairs: Vec<(f64, f64)> = [1.0, 1.5, 3.0, 2.0, 1.2].iter().map(|slow| (2.0 * slow, *slow)).collect();
        let ratio = Compared::Paired(pairs.clone()).interval(SEED).expect("pairs");
        assert!([ratio.value, ratio.low, ratio.high].iter().all(|x| (x - 2.0).abs() < 1e-12), "{ratio:?}");
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let unpaired = Compared::Unpaired(a, b).interval(SEED).expect("samples");
        assert!((unpaired.value - 2.0).abs() < 1e-12);
        assert!(unpaired.low < 1.001 && unpaired.high > 2.999, "{unpaired:?}");
        assert_eq!(Compared::Paired(vec![(1.0, 0.0)]).interval(SEED), None);
        assert_eq!(Compared::Paired(vec![]).interval(SEED), None);
    }

    #[test]
    fn geometric_means_by_hand() {
        assert_eq!(geometric_mean(&[]), None);
        assert_eq!(geometric_mean(&[1.0, 0.0]), None);
        assert!((geometric_mean(&[1.0, 2.0, 4.0]).expect("positive") - 2.0).abs() < 1e-12);
        let groups = [Compared::Paired(vec![(2.0, 1.0); 5]), Compared::Paired(vec![(8.0, 1.0); 5])];
        let mean = geometric_mean_ratio(&groups, SEED).expect("groups");
        assert!((mean.value - 4.0).abs() < 1e-12 && (mean.low - 4.0).abs() < 1e-12 && mean.n == 10);
        assert_eq!(geometric_mean_ratio(&[Compared::Paired(vec![])], SEED), None);
        assert_eq!(geometric_mean_ratio(&[], SEED), None);
    }

    #[test]
    fn wilson_by_hand() {
        // 8 of 10: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half width 0.22658.
        let p = proportion(8, 10).expect("n");
        assert!((p.low - 0.49016).abs() < 1e-4 && (p.high - 0.94332).abs() < 1e-4, "{p:?}");
        assert_eq!(proportion(0, 0), None);
        assert!((proportion(10, 10).expect("n").high - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_reciprocal_swaps_the_ends() {
        let estimate = Estimate { value: 2.0, low: 1.0, high: 4.0, n: 3 }.recip();
        assert_eq!(estimate, Estimate { value: 0.5, low: 0.25, high: 1.0, n: 3 });
    }
}
