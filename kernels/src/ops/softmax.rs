//! Softmax in pieces: the exponentials of some scores, and how the answers of pieces are put together (the online softmax of Milakov and
//! Gimelshein 2018).

use std::ops::Range;

use super::attention::Scores;
use super::{LANES, exp, madd, max_of, sum_lanes};

/// Vectors of [`LANES`] scores whose exponentials are taken side by side: each is a chain of some twenty operations. On Zen 3 256 scores
/// take 1.3 times as long one after the other.
const TOGETHER: usize = 2;

/// Makes `e^(score - max)` of `N` scores, a multiple of [`LANES`], and adds them to `sums`.
#[inline(always)]
fn take_exponentials<const FMA: bool, const N: usize>(scores: &mut [f32; N], max: f32, sums: &mut [f32; LANES]) {
    for i in 0..N {
        scores[i] = exp::<FMA>(scores[i] - max);
    }
    for scores in scores.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            sums[i] += scores[i];
        }
    }
}

per_isa! {
    /// Of each query's scores those that it sees become `e^(score - max)`, and the last two numbers of its `stride` in `answers` become
    /// `max` and `Σ e^(score - max)`: `-∞` and 0 where it sees none. The other scores mean nothing, neither before nor after. `seen` has the
    /// positions for each token, of which there is one at least; their queries, as many for each, follow each other.
    pub fn exponentials(scores: &mut [Scores], seen: &[Range<usize>], answers: &mut [f32], stride: usize) {
        let n_heads = scores.len() / seen.len();
        // Whole registers to the end: -∞ is never the largest, and adds nothing.
        let whole = |seen: &Range<usize>| seen.start / LANES * LANES..seen.end.next_multiple_of(LANES);
        // First all maxima: their last steps are chains, which overlap where no exponentials lie between them.
        for (q, (scores, answer)) in scores.iter_mut().zip(answers.chunks_exact_mut(stride)).enumerate() {
            let seen = &seen[q / n_heads];
            let mut max = f32::NEG_INFINITY;
            if !seen.is_empty() {
                let all = whole(seen);
                scores[all.start..seen.start].fill(f32::NEG_INFINITY);
                scores[seen.end..all.end].fill(f32::NEG_INFINITY);
                max = max_of([&scores[all]], f32::NEG_INFINITY, |[score]| score);
            }
            answer[stride - 2] = max;
        }
        for (q, (scores, answer)) in scores.iter_mut().zip(answers.chunks_exact_mut(stride)).enumerate() {
            let seen = &seen[q / n_heads];
            let mut lanes = [0f32; LANES];
            if !seen.is_empty() {
                let max = answer[stride - 2];
                let (together, rest) = scores[whole(seen)].as_chunks_mut::<{ TOGETHER * LANES }>();
                for scores in together {
                    take_exponentials::<FMA, _>(scores, max, &mut lanes);
                }
                for scores in rest.as_chunks_mut::<LANES>().0 {
                    take_exponentials::<FMA, _>(scores, max, &mut lanes);
                }
            }
            answer[stride - 1] = sum_lanes(lanes);
        }
    }

    /// `y = a · y + b · x`.
    pub fn mix(a: f32, y: &mut [f32], b: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = madd::<FMA>(a, *y, b * x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `exponentials` for one query; what becomes of the scores, the largest, and the sum.
    fn exponentials_of(scores: &[f32], seen: Range<usize>) -> (Vec<f32>, f32, f32) {
        let (mut all, mut answer) = ([[f32::NAN; _]], [0.0; 2]);
        all[0][..scores.len()].copy_from_slice(scores);
        exponentials(&mut all, &[seen], &mut answer, 2);
        (all[0][..scores.len()].to_vec(), answer[0], answer[1])
    }

    #[test]
    fn exponentials_are_within_two_ulp() {
        for i in -8700..=0 {
            let x = i as f32 / 100.0;
            let (new, max, sum) = exponentials_of(&[x + 1.0, 1.0], 0..2);
            let expected = f64::from(x + 1.0 - 1.0).exp();
            assert!((f64::from(new[0]) - expected).abs() <= expected * 4e-7 + 1e-44, "{x}: {new:?} {expected}");
            assert_eq!((max, sum, new[1]), (1.0, new[0] + 1.0, 1.0));
        }
        for x in [-87.8, -88.0, -100.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exponentials_of(&[x, 0.0], 0..2), (vec![0.0, 1.0], 0.0, 1.0), "{x}");
        }
    }

    #[test]
    fn exponentials_are_of_what_is_seen() {
        let old: Vec<f32> = (0..48).map(|i| if i % 5 == 0 { 90.0 } else { i as f32 / 7.0 }).collect();
        let all_seen = [0..0, 0..1, 0..16, 3..4, 15..17, 5..48, 20..33, 16..32, 47..48, 48..48];
        for seen in all_seen.clone() {
            let (new, max, sum) = exponentials_of(&old, seen.clone());
            let of = &old[seen.clone()];
            assert_eq!(max, of.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{seen:?}");
            let expected: f64 = of.iter().map(|&x| f64::from(x - max).exp()).sum();
            assert!((f64::from(sum) - expected).abs() <= expected * 1e-6, "{seen:?}: {sum} {expected}");
            for (new, old) in new[seen].iter().zip(of) {
                assert!((f64::from(*new) - f64::from(old - max).exp()).abs() < 1e-6);
            }
        }
        let mut bad = [1.0; LANES];
        bad[3] = f32::NAN;
        assert!(exponentials_of(&bad, 0..5).2.is_nan(), "a score that is no number has to go on");
        assert_eq!(exponentials_of(&bad, 5..9).2, 4.0);

        // Two heads a token, and room in front of what is answered.
        let mut scores: Vec<Scores> = vec![[0.0; _]; 2 * all_seen.len()];
        for (q, scores) in scores.iter_mut().enumerate() {
            (0..48).for_each(|i| scores[i] = old[(i + q) % 48]);
        }
        let given = scores.clone();
        let mut answers = vec![7.0; 5 * scores.len()];
        exponentials(&mut scores, &all_seen, &mut answers, 5);
        for (q, (given, scores)) in given.iter().zip(&scores).enumerate() {
            let seen = all_seen[q / 2].clone();
            let (new, max, sum) = exponentials_of(&given[..48], seen.clone());
            assert_eq!(answers[5 * q..][..5], [7.0, 7.0, 7.0, max, sum]);
            assert_eq!(scores[seen.clone()], new[seen]);
        }
    }
}
