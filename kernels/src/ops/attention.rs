//! The inner loops of attention: products of a few queries (or their weights) with the rows of a KV cache, and the exponentials
//! between them.

use std::ops::Range;

use half::f16;

use super::{LANES, exp, madd, max_of, sum_lanes};

/// Queries whose sums are in registers together, so that a number that was widened is used so many times: with 16 lanes each they take
/// half of the registers of AVX2; in AVX-512, where a sum is one register, 16 do.
const TOGETHER: usize = 4;
const TOGETHER_WIDE: usize = 16;

/// The weights of a query. Every query has room for the same number, so that those of 16 are at fixed distances from one address; they
/// are no multiple of 4 KB, at which caches take them for each other.
pub type Weights = [f32; 1040];

/// Bytes of a cache line.
const LINE: usize = 64;

/// What a cache is made of.
trait Number: Copy {
    /// Sixteen numbers as they are computed with. `FMA` and `WIDE` as `per_isa` has them.
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES];
}

impl Number for f32 {
    #[inline(always)]
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES] {
        *numbers
    }
}

impl Number for f16 {
    #[inline(always)]
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES] {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            use std::arch::x86_64::*;
            // SAFETY: `WIDE` says that the CPU has AVX-512; the array holds the 32 bytes that are read.
            return unsafe {
                let halves = _mm256_loadu_si256(numbers.as_ptr().cast());
                std::mem::transmute::<__m512, [f32; LANES]>(_mm512_cvtph_ps(halves))
            };
        }
        #[cfg(target_arch = "x86_64")]
        if FMA {
            use std::arch::x86_64::*;
            let at: *const __m128i = numbers.as_ptr().cast();
            // SAFETY: `FMA` says that the CPU has F16C; the array holds the two times 16 bytes that are read.
            return unsafe {
                std::mem::transmute::<[__m256; 2], [f32; LANES]>([
                    _mm256_cvtph_ps(_mm_loadu_si128(at)),
                    _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
                ])
            };
        }
        #[cfg(target_arch = "aarch64")]
        if FMA {
            return crate::dense::neon::halves(numbers);
        }
        numbers.map(f16::to_f32)
    }
}

/// Asks for the cache line at `at`.
#[inline(always)]
fn fetch<N>(at: *const N) {
    #[cfg(target_arch = "x86_64")]
    crate::arch::x86_64::prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// [`add_products_f32`] for `Q` queries, with all of a sum in one lane.
#[inline(always)]
fn tile<N: Number, const Q: usize, const FMA: bool, const WIDE: bool>(
    weights: &[Weights],
    from: usize,
    [panels, ahead]: [&[N]; 2],
    height: usize,
    rows: Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    // All slices have one length, so that no access of the loop is checked.
    let n_rows = rows.len();
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q][from..][..n_rows]);
    let (all, _) = panels.as_chunks::<LANES>();
    for (p, panel) in all.chunks_exact(height).enumerate() {
        let mut sums = [[0f32; LANES]; Q];
        for q in 0..Q {
            sums[q].copy_from_slice(&out[q * out_stride + p * LANES..][..LANES]);
        }
        let panel = &panel[rows.start..][..n_rows];
        for i in 0..n_rows {
            let at = (p * height + rows.start + i) * LANES;
            if at.is_multiple_of(LINE / size_of::<N>()) {
                fetch(ahead.as_ptr().wrapping_add(at));
            }
            let row = N::widen::<FMA, WIDE>(&panel[i]);
            for q in 0..Q {
                for l in 0..LANES {
                    sums[q][l] = madd::<FMA>(weights[q][i], row[l], sums[q][l]);
                }
            }
        }
        for q in 0..Q {
            out[q * out_stride + p * LANES..][..LANES].copy_from_slice(&sums[q]);
        }
    }
}

/// [`add_products_f32`] for any number of queries, some at a time.
#[inline(always)]
fn tiles<N: Number, const FMA: bool, const WIDE: bool>(
    weights: &[Weights],
    from: usize,
    panels: [&[N]; 2],
    height: usize,
    rows: Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    let n = out.len().div_ceil(out_stride);
    let mut first = 0;
    while first < n {
        let (weights, out) = (&weights[first..], &mut out[first * out_stride..]);
        if WIDE && n - first >= TOGETHER_WIDE {
            tile::<N, TOGETHER_WIDE, FMA, WIDE>(weights, from, panels, height, rows.clone(), out, out_stride);
            first += TOGETHER_WIDE;
            continue;
        }
        match n - first {
            1 => tile::<N, 1, FMA, WIDE>(weights, from, panels, height, rows.clone(), out, out_stride),
            2 => tile::<N, 2, FMA, WIDE>(weights, from, panels, height, rows.clone(), out, out_stride),
            3 => tile::<N, 3, FMA, WIDE>(weights, from, panels, height, rows.clone(), out, out_stride),
            _ => tile::<N, TOGETHER, FMA, WIDE>(weights, from, panels, height, rows.clone(), out, out_stride),
        }
        first += TOGETHER;
    }
}

per_isa! {
    /// `out[q] += Σ_i weights[q][from + i] · row[i]`, one row after the other, so that a sum in pieces has the bits of the whole and none
    /// depends on the other queries.
    ///
    /// A row is kept in panels of 16 numbers: `panels` is `[width / 16][height][16]`, of which `rows` are summed. Query `q` has
    /// the rows' weights at `weights[q][from..]` and its `width` sums from `q · out_stride` on; there are as many queries as `out`
    /// has room for. The second of `panels` is what will be asked for next: it is fetched meanwhile, a line for a line, since
    /// prefetchers come too late where blocks are this short.
    ///
    /// With keys in one panel (`[head_dim][16 positions]`) and queries as weights these are scores; with values
    /// (`[head_dim / 16][positions][16]`) and softmax weights, the attention's output.
    pub fn add_products_f32(
        weights: &[Weights], from: usize, panels: [&[f32]; 2], height: usize, rows: Range<usize>, out: &mut [f32],
        out_stride: usize,
    ) {
        tiles::<f32, FMA, WIDE>(weights, from, panels, height, rows, out, out_stride);
    }

    /// [`add_products_f32`] with rows in half precision, which are widened in registers.
    pub fn add_products_f16(
        weights: &[Weights], from: usize, panels: [&[f16]; 2], height: usize, rows: Range<usize>, out: &mut [f32],
        out_stride: usize,
    ) {
        tiles::<f16, FMA, WIDE>(weights, from, panels, height, rows, out, out_stride);
    }

    /// Scores become `e^(score - max)`; returns `(max, Σ e^(score - max))`, which is `(-∞, 0)` for none.
    pub fn exponentials(scores: &mut [f32]) -> (f32, f32) {
        let max = max_of(scores, f32::NEG_INFINITY, |score| score);
        for score in scores.iter_mut() {
            *score = exp::<FMA>(*score - max);
        }
        let mut lanes = [0f32; LANES];
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += chunk[i];
            }
        }
        for (lane, score) in lanes.iter_mut().zip(rest) {
            *lane += score;
        }
        (max, sum_lanes(lanes))
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

    #[test]
    fn exponentials_are_within_two_ulp() {
        for i in -8700..=0 {
            let x = i as f32 / 100.0;
            let mut scores = [x + 1.0, 1.0];
            let (max, sum) = exponentials(&mut scores);
            let expected = f64::from(x + 1.0 - 1.0).exp();
            assert!((f64::from(scores[0]) - expected).abs() <= expected * 4e-7 + 1e-44, "{x}: {scores:?} {expected}");
            assert_eq!((max, sum, scores[1]), (1.0, scores[0] + 1.0, 1.0));
        }
        assert_eq!(exponentials(&mut []), (f32::NEG_INFINITY, 0.0));
    }

    /// Whole numbers, so that sums are exact in any order.
    fn numbers(n: usize, modulus: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 7 % modulus) as f32 - 5.0).collect()
    }

    /// `n` queries with `height` weights each, behind three others.
    fn weights_of(n: usize, weights: Vec<f32>, height: usize) -> Vec<Weights> {
        let mut all = vec![[f32::NAN; _]; n];
        all.iter_mut()
            .zip(weights.chunks_exact(height))
            .for_each(|(all, weights)| all[3..][..height].copy_from_slice(weights));
        all
    }

    #[test]
    fn products_of_any_shape_are_right_in_both_types() {
        // Panels, their height, the rows, queries.
        let cases = [
            (1, 128, 0..128, 4),
            (8, 16, 0..16, 4),
            (8, 16, 3..9, 1),
            (3, 7, 1..7, 3),
            (2, 5, 0..5, 7),
            (8, 16, 0..16, 16),
            (1, 9, 2..9, 11),
            (2, 9, 0..9, 37),
            (4, 16, 5..5, 2),
        ];
        for (n_panels, height, range, n_queries) in cases {
            let out_stride = n_panels * LANES + 2;
            let panels = numbers(n_panels * height * LANES, 11);
            let weights = weights_of(n_queries, numbers(n_queries * height, 13), height);
            let start = numbers(n_queries * out_stride - 2, 17);
            let mut expected = start.clone();
            for q in 0..n_queries {
                for (p, panel) in panels.chunks_exact(height * LANES).enumerate() {
                    for (i, row) in panel.chunks_exact(LANES).enumerate().filter(|(i, _)| range.contains(i)) {
                        for (lane, x) in row.iter().enumerate() {
                            expected[q * out_stride + p * LANES + lane] += weights[q][3 + i - range.start] * x;
                        }
                    }
                }
            }
            let mut out = start.clone();
            add_products_f32(&weights, 3, [&panels; 2], height, range.clone(), &mut out, out_stride);
            assert_eq!(out, expected, "{n_panels} panels of {height}, {n_queries} queries");
            let panels: Vec<f16> = panels.into_iter().map(f16::from_f32).collect();
            let mut out = start;
            add_products_f16(&weights, 3, [&panels, &[]], height, range, &mut out, out_stride);
            assert_eq!(out, expected, "{n_panels} panels of {height}, {n_queries} queries, f16");
        }
    }

    #[test]
    fn halves_of_every_kind_widen_as_the_library_has_it() {
        // One query whose weight is 1: the sum is the number.
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut wide = vec![0.0; halves.len()];
        add_products_f16(&[[1.0; _]], 0, [&halves; 2], 1, 0..1, &mut wide, halves.len());
        for (half, wide) in halves.iter().zip(&wide) {
            assert!(half.to_f32() == *wide || (half.is_nan() && wide.is_nan()), "{half:?}: {wide}");
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_queries_beside_them() {
        let panels: Vec<f32> = (0..3 * 9 * LANES).map(|i| (i as f32 * 0.37).sin()).collect();
        let weights = weights_of(21, (0..21 * 9).map(|i| (i as f32 * 0.73).cos()).collect(), 9);
        let mut together = vec![0.0; 21 * 48];
        add_products_f32(&weights, 3, [&panels; 2], 9, 0..9, &mut together, 48);
        for q in 0..21 {
            let mut alone = vec![0.0; 48];
            add_products_f32(&weights[q..], 3, [&panels; 2], 9, 0..4, &mut alone, 48);
            add_products_f32(&weights[q..], 7, [&panels; 2], 9, 4..9, &mut alone, 48);
            assert_eq!(alone, together[q * 48..][..48]);
        }
    }
}
