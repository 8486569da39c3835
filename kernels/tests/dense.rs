//! Every dense kernel against sums in f64, and the promise that results depend neither on the batch nor on rows or threads.

mod support;

use half::{bf16, f16};
use ternbench_kernels::dense::{Activations, DENSE_KERNELS, DenseKernel};
use ternbench_kernels::driver::{Input, Output, Scratch, Weights, multiply};
use ternbench_kernels::isa::Feature;
use ternbench_kernels::probe::Arithmetic;
use ternbench_kernels::verify::Random;
use ternbench_kernels::{AlignedBytes, Bytes, DenseMatrix, DenseType, Linear, Pool};

/// Around the 8 lanes, the block of 32 and the column blocks of 512, 768, 1024 and twice as many (types with blocks keep the multiples of 32).
const K: &[usize] =
    &[0, 1, 3, 7, 8, 9, 31, 32, 33, 96, 256, 288, 511, 512, 513, 544, 768, 801, 1024, 1031, 1064, 1600, 2049];
/// Around the register tiles of 3, 4, 6 and 32 rows, the group of 8, the block of 48 and the sums of 192.
const N: &[usize] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, 199];
/// Around the fused path's 8 tokens, its pairs, and register tiles of 4, 6, 8 and 16.
const M: &[usize] = &[1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 15, 16, 17, MOST];
const MOST: usize = 32;

fn kernels() -> Vec<&'static dyn DenseKernel> {
    support::runnable(DENSE_KERNELS, |entry| entry.info.name)
}

fn bytes(data: &[u8]) -> Bytes {
    let mut bytes = AlignedBytes::zeroed(data.len());
    bytes.copy_from_slice(data);
    bytes.into()
}

/// Random weights of a type. With `integers`, small integers, whose sums f32 holds exactly.
fn dense_matrix(ty: DenseType, n: usize, k: usize, integers: bool, random: &mut Random) -> DenseMatrix {
    let mut data = Vec::new();
    for _ in 0..n * k / ty.block_len() {
        let mut value = || {
            if integers { random.below(17) as f32 - 8.0 } else { random.float() }
        };
        match ty {
            DenseType::F32 => data.extend(value().to_le_bytes()),
            DenseType::F16 => data.extend(f16::from_f32(value()).to_le_bytes()),
            DenseType::BF16 => data.extend(bf16::from_f32(value()).to_le_bytes()),
            DenseType::Q8_0 | DenseType::Q4_0 | DenseType::Q4_1 => {
                let (head, codes) = match ty {
                    DenseType::Q8_0 => (1, 32),
                    DenseType::Q4_0 => (1, 16),
                    _ => (2, 16),
                };
                for _ in 0..head {
                    data.extend(f16::from_f32(if integers { 2.0 } else { value() }).to_le_bytes());
                }
                data.extend((0..codes).map(|_| random.below(256) as u8));
            }
        }
    }
    DenseMatrix::new(n, k, ty, bytes(&data)).expect("whole rows")
}

fn compute(kernel: &dyn DenseKernel, w: &DenseMatrix, x: &[f32], m: usize, rows: std::ops::Range<usize>) -> Vec<f32> {
    let (mut y, mut prepared) = (vec![f32::NAN; m * rows.len()], AlignedBytes::zeroed(0));
    Pool::new(1).unwrap().run(|team| kernel.prepare(team, x, m, w.k(), &mut prepared));
    kernel.compute(w, x, &prepared, m, rows, &mut y);
    y
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// A weight row as floats.
fn row_of(w: &DenseMatrix, row: usize) -> Vec<f32> {
    let mut weights = vec![0.0; w.k()];
    w.dequantize_row(row, &mut weights);
    weights
}

/// `Σ w·x` and `Σ |w·x|` in f64.
fn reference(weights: &[f32], x: &[f32]) -> (f64, f64) {
    let products = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
    products.fold((0.0, 0.0), |(sum, norm), p| (sum + p, norm + p.abs()))
}

/// How far the rounding of the input can move a sum whose products' magnitudes add up to `norm`.
fn rounding(arithmetic: Arithmetic, weights: &[f32], x: &[f32], norm: f64) -> f64 {
    match arithmetic {
        Arithmetic::F32 => 0.0,
        Arithmetic::Int8 | Arithmetic::Ternary => int8_rounding(weights, x),
        Arithmetic::Bf16 => bf16_rounding(weights, norm, 2f64.powi(-8)),
        Arithmetic::SplitBf16 => bf16_rounding(weights, norm, 2f64.powi(-15) + 2f64.powi(-17)),
    }
}

/// To bf16: by at most 2^-8 of every product, or, where it flushes a denormal, by less than the smallest normal number times the weight.
/// With two bf16 the input is off by at most 2^-17, and the product that is left out, of what the first parts of the weight (cut) and of
/// the input (rounded) leave, is less than 2^-7 times 2^-8.
fn bf16_rounding(weights: &[f32], norm: f64, share: f64) -> f64 {
    norm * share + weights.iter().map(|w| f64::from(w.abs()) * f64::from(f32::MIN_POSITIVE)).sum::<f64>()
}

/// To int8: half a step of each block's `absmax / 127`, times its weights. The step itself, its inverse and the products are rounded a few
/// times, which a thousandth covers.
fn int8_rounding(weights: &[f32], x: &[f32]) -> f64 {
    let of_block = |(w, x): (&[f32], &[f32])| {
        let absmax = x.iter().fold(0.0f64, |max, x| max.max(f64::from(x.abs())));
        absmax / 254.0 * 1.001 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
    };
    weights.chunks(32).zip(x.chunks(32)).map(of_block).sum()
}

fn shapes(ty: DenseType) -> impl Iterator<Item = (usize, usize)> {
    let ks = K.iter().copied().filter(move |k| k.is_multiple_of(ty.block_len()));
    support::sample(ks.flat_map(|k| N.iter().map(move |&n| (n, k))))
}

#[test]
fn sums_are_within_the_rounding_bound() {
    let mut random = Random::new(1);
    for kernel in kernels() {
        let mut worst = (0.0, String::new());
        for (n, k) in shapes(kernel.info().ty).chain([(5, 2560), (3, 6912)]) {
            let w = dense_matrix(kernel.info().ty, n, k, false, &mut random);
            let x: Vec<f32> = (0..MOST * k).map(|_| random.float()).collect();
            // Higham: a sum of products through `ops` roundings is off by at most γ_ops · Σ|w·x|. A lane takes k / 8
            // products, each rounded at most twice, and three additions end it. (Int8 kernels add k / 32 blocks; a lane of bf16
            // takes k / 16 products, and four additions end it.) A tile's product of 32 columns takes 16 of each half and adds the two; a sum
            // takes up to three of those a step.
            let ops = match kernel.info().features.contains(&Feature::AmxTile) {
                true => 17 + 3 * k.div_ceil(32),
                false => 2 * k.div_ceil(8) + 3,
            } as f64;
            let unit = f64::from(f32::EPSILON) / 2.0;
            let gamma = ops * unit / (1.0 - ops * unit);
            // Sums and bounds, by row and token.
            let mut expected = Vec::new();
            for weights in (0..n).map(|row| row_of(&w, row)) {
                for token in 0..MOST {
                    let x = &x[token * k..][..k];
                    let (sum, norm) = reference(&weights, x);
                    let rounding = rounding(kernel.info().arithmetic(), &weights, x, norm);
                    expected.push((sum, gamma * (norm + rounding) + rounding + f64::MIN_POSITIVE));
                }
            }
            for &m in M {
                for (at, y) in compute(kernel, &w, &x[..m * k], m, 0..n).iter().enumerate() {
                    let (token, row) = (at / n, at % n);
                    let (sum, bound) = expected[row * MOST + token];
                    let share = (f64::from(*y) - sum).abs() / bound;
                    if share.is_nan() || share > worst.0 {
                        worst = (share, format!("{n} x {k}, token {token} of {m}, row {row}: {y}, not {sum}"));
                    }
                }
            }
        }
        assert!(worst.0 <= 1.0, "{}: {} times the bound at {}", kernel.info().name, worst.0, worst.1);
    }
}

#[test]
fn small_integers_come_out_exactly() {
    let mut random = Random::new(2);
    for kernel in kernels() {
        for (n, k) in shapes(kernel.info().ty) {
            let w = dense_matrix(kernel.info().ty, n, k, true, &mut random);
            // Where the largest of every block is 127, its step is 1, and int8 holds the input exactly.
            let int8 = kernel.info().arithmetic() == Arithmetic::Int8;
            let value = |at| if int8 && at % 32 == 5 { 127.0 } else { random.below(31) as f32 - 15.0 };
            let x: Vec<f32> = (0..MOST * k).map(value).collect();
            let mut expected = Vec::new();
            for weights in (0..n).map(|row| row_of(&w, row)) {
                expected.extend((0..MOST).map(|token| reference(&weights, &x[token * k..][..k]).0));
            }
            for &m in M {
                for (at, y) in compute(kernel, &w, &x[..m * k], m, 0..n).into_iter().enumerate() {
                    let (token, row) = (at / n, at % n);
                    let name = kernel.info().name;
                    assert_eq!(f64::from(y), expected[row * MOST + token], "{name} {n} x {k}, m = {m}: {token}, {row}");
                }
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_the_batch_nor_on_rows_nor_on_threads() {
    let mut random = Random::new(3);
    let pools = [1, 2, 3].map(|n_threads| Pool::new(n_threads).unwrap());
    for kernel in kernels() {
        let (n, m) = (37, 14);
        let ks = [2560].into_iter().chain(K.iter().copied());
        for k in support::sample(ks.filter(|k| k.is_multiple_of(kernel.info().ty.block_len()))) {
            let what = format!("{} {n} x {k}", kernel.info().name);
            let w = dense_matrix(kernel.info().ty, n, k, false, &mut random);
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            let all = compute(kernel, &w, &x, m, 0..n);
            for part in 1..m {
                let first = compute(kernel, &w, &x[..part * k], part, 0..n);
                assert!(bits(&first) == bits(&all[..part * n]), "{what}: the first {part} tokens alone");
            }
            for rows in [0..1, 3..20, 16..32, 36..37] {
                for part in [1, 2, 3, m] {
                    let y = compute(kernel, &w, &x[..part * k], part, rows.clone());
                    let same = |token: usize| {
                        bits(&y[token * rows.len()..][..rows.len()]) == bits(&all[token * n..][rows.clone()])
                    };
                    assert!((0..part).all(same), "{what}: rows {rows:?}, {part} tokens");
                }
            }
            if kernel.info().activations == Activations::F32 {
                // Enough for whole tiles and what is left of them; one comes twice.
                let rows = [5u32, 36, 0, 20, 20, 19, 3, 7, 1, 35, 11];
                for n_rows in 0..=rows.len() {
                    let mut y = vec![f32::NAN; n_rows];
                    kernel.compute_rows(&w, &x[k..2 * k], &rows[..n_rows], &mut y);
                    let expected: Vec<f32> = rows[..n_rows].iter().map(|&row| all[n + row as usize]).collect();
                    assert!(bits(&y) == bits(&expected), "{what}: {n_rows} rows here and there");
                }
            }
            let linear = Linear { weights: Weights::Dense { kernel, matrix: w.clone() }, bias: None };
            for pool in &pools {
                let mut y = vec![f32::NAN; m * n];
                pool.run(|team| {
                    multiply(team, &mut Scratch::default(), Input::Rows(&x), m, &mut [Output::store(&linear, &mut y)])
                });
                assert!(bits(&y) == bits(&all), "{what}: {} threads", pool.n_threads());
            }
        }
    }
}

/// More tokens than any kernel lets go by together, and more columns than it takes at once.
#[test]
fn long_batches_have_the_bits_of_short_ones() {
    let mut random = Random::new(5);
    for kernel in kernels() {
        let name = kernel.info().name;
        let long = if kernel.info().ty.block_len() == 1 { 2215 } else { 2208 };
        // Behind whole groups of 128 tokens are 44, and, of the first 129, one; of 48 and 33 tokens the last group of 16 has none beside it.
        for (k, m, n_first) in [(long, 300, 129), (96, 48, 33)] {
            for n in support::sample([21, 101]) {
                let w = dense_matrix(kernel.info().ty, n, k, false, &mut random);
                let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
                let all = compute(kernel, &w, &x, m, 0..n);
                for (i, x) in x.chunks(29 * k).enumerate() {
                    let part = compute(kernel, &w, x, x.len() / k, 0..n);
                    let from = i * 29;
                    assert!(bits(&part) == bits(&all[from * n..][..part.len()]), "{name}: tokens {from}.. of {m}");
                }
                let first = compute(kernel, &w, &x[..n_first * k], n_first, 0..n);
                assert!(bits(&first) == bits(&all[..first.len()]), "{name}: the first {n_first} tokens of {m}");
            }
        }
    }
}

/// Kernels that keep the same sums in the same order give the same bits, so what a model says does not depend on which of them a
/// CPU has.
#[test]
fn avx512_has_the_bits_of_avx2() {
    let mut random = Random::new(4);
    for kernel in kernels() {
        let Some((_, rest)) = kernel.info().name.split_once('-').filter(|(isa, _)| isa.starts_with("avx512")) else {
            continue;
        };
        if kernel.info().arithmetic() == Arithmetic::Bf16 {
            continue; // Nothing else multiplies bf16.
        }
        let name = format!("avx2-{rest}");
        let entry = DENSE_KERNELS.iter().find(|entry| entry.info.name == name).expect("every kernel has its AVX2 twin");
        let twin = entry.kernel().expect("a CPU with AVX-512 has AVX2");
        for (n, k) in shapes(kernel.info().ty).chain([(13, 2560)]) {
            let w = dense_matrix(kernel.info().ty, n, k, false, &mut random);
            for &m in M {
                let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
                let [a, b] = [kernel, twin].map(|kernel| bits(&compute(kernel, &w, &x, m, 0..n)));
                assert!(a == b, "{} {n} x {k}, m = {m}", kernel.info().name);
            }
        }
    }
}
