use super::*;

#[test]
fn numbers_become_multiples_of_a_unit() {
    let mut ints = [0; 5];
    assert_eq!(quantize_i16(&[-254.0, 1.0, 3.0, 0.0, 127.0], 127.0, &mut ints), 2.0);
    assert_eq!(ints, [-127, 0, 2, 0, 64], "half to even");
    let x: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut ints = vec![0; 100];
    let unit = quantize_i16(&x, 32767.0, &mut ints);
    assert!(x.iter().zip(&ints).all(|(x, &i)| (x - f32::from(i) * unit).abs() <= 0.501 * unit));
    assert_eq!(ints.iter().map(|i| i.unsigned_abs()).max(), Some(32767));
    for tiny in [0.0, 1e-31, f32::from_bits(1)] {
        assert_eq!(quantize_i16(&[tiny, -tiny], 127.0, &mut ints[..2]), 0.0);
        assert_eq!(ints[..2], [0, 0]);
    }
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!quantize_i16(&[1.0, bad, 2.0], 127.0, &mut ints[..3]).is_finite());
    }
}

/// All legal numbers, or the largest alone, so that with equal weights sums are as large as they can become.
fn numbers(n: usize, largest: bool) -> Vec<i8> {
    (0..n).map(|i| if largest { 127 } else { (i as i32 * 37 % 255 - 127) as i8 }).collect()
}

/// Blocks of `len` numbers with a unit for each position.
fn blocks_of(numbers: &[i8], len: usize, units: &[f32]) -> Vec<Vec<f32>> {
    let block = |(numbers, units)| [&bytemuck::pod_collect_to_vec::<i8, f32>(numbers)[..], units].concat();
    numbers.chunks_exact(len).zip(units.chunks_exact(POSITIONS)).map(block).collect()
}

fn bytes_of(blocks: &[Vec<f32>]) -> Vec<&[u8]> {
    blocks.iter().map(|block| bytemuck::cast_slice(block)).collect()
}

fn query(head_dim: usize, seed: usize, largest: bool) -> Vec<f32> {
    (0..head_dim).map(|i| if largest { 1.0 } else { ((i * 7 + seed) as f32).sin() }).collect()
}

#[test]
fn scores_are_sums_of_integers() {
    for (n_blocks, head_dim, n_queries) in [
        (1, 16usize, 1),
        (4, 128, 4),
        (3, 22, 4),
        (5, 128, 5),
        (16, 64, 16),
        (3, 7, 3),
        (7, 20, 2),
        (2, 1024, 9),
        (1, 256, 37),
        (16, 128, 48),
        (5, 22, 33),
        (3, 80, 12),
    ] {
        for largest in [false, true] {
            let height = head_dim.div_ceil(2);
            let len = height * 2 * LANES;
            let all = numbers(n_blocks * len, largest);
            let mut queries = vec![IntWeights::default(); n_queries];
            for (q, ints) in queries.iter_mut().enumerate() {
                ints.set_query(&query(1024, 3, true));
                ints.set_query(&query(head_dim, q, largest));
            }
            let units: Vec<f32> = (0..n_blocks * LANES).map(|i| 1.0 + i as f32 / 3.0).collect();
            let blocks = blocks_of(&all, len, &units);
            let blocks = bytes_of(&blocks);
            type Way = fn(&[IntWeights], Blocks<'_>, usize, &mut [Scores]);
            let scores_by = |way: Way| {
                let mut out: Vec<Scores> = vec![[0.0; _]; n_queries];
                way(&queries, Blocks { all: &blocks, next: &[] }, height, &mut out);
                out
            };
            let out = scores_by(scores_i8);
            // The ways that are not taken on this CPU.
            let mut others = vec![scores_by(scores::<false, false, false>)];
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    others.push(scores_by(scores::<true, false, false>));
                }
                if is_x86_feature_detected!("avx512bw") {
                    others.push(scores_by(scores::<true, true, false>));
                }
                if AmxInt8::detect().is_some() {
                    others.push(scores_by(|queries, blocks, height, out| {
                        tiles::scores(AmxInt8::detect().expect("just was"), queries, blocks, height, out);
                    }));
                    // SAFETY: no CPU has AMX without these.
                    others.push(scores_by(|queries, blocks, height, out| unsafe {
                        scores_vnni(queries, blocks, height, out);
                    }));
                }
            }
            let held =
                |scores: &[Scores]| scores.iter().map(|row| row[..n_blocks * LANES].to_vec()).collect::<Vec<_>>();
            assert!(others.iter().all(|other| held(other) == held(&out)), "all ways sum the same integers");
            for (q, ints) in queries.iter().enumerate() {
                assert!(largest || ints.unit > 0.0 && ints.pairs[..height].iter().any(|pair| pair[0] != 0));
                for (i, block) in all.chunks_exact(len).enumerate() {
                    for l in 0..LANES {
                        let row = |d: usize| i64::from(block[(d / 2 * LANES + l) * 2 + d % 2]);
                        let weight = |d: usize| i64::from(ints.pairs[d / 2][d % 2]);
                        let sum: i64 = (0..head_dim).map(|d| row(d) * weight(d)).sum();
                        assert_eq!(i64::from(sum as i32), sum, "{head_dim} products stay within int32");
                        let i = i * LANES + l;
                        assert_eq!(out[q][i], ints.unit * sum as f32 * units[i]);
                    }
                }
            }
        }
    }
}

#[test]
fn values_are_weighed_in_a_unit_a_chunk() {
    for (n_blocks, n_panels, n_queries) in [
        (1, 1, 1),
        (3, 8, 4),
        (16, 8, 5),
        (2, 3, 16),
        (4, 5, 3),
        (2, 8, 9),
        (16, 8, 48),
        (3, 2, 17),
        (5, 16, 33),
        (1, 4, 12),
    ] {
        let len = n_panels * LANES * LANES;
        let all = numbers(n_blocks * len, false);
        let n = n_blocks * POSITIONS;
        let seen = 3..n - 2;
        let here = |i: &usize| seen.contains(i);
        let units: Vec<f32> = (0..n).map(|i| if here(&i) { 0.5 + (i % 5) as f32 } else { f32::NAN }).collect();
        let blocks = blocks_of(&all, len, &units);
        let blocks = bytes_of(&blocks);
        let mut ints = vec![IntWeights::default(); n_queries];
        let stride = n_panels * LANES + 2;
        let mut out = vec![1.0; n_queries * stride];
        for (q, ints) in ints.iter_mut().enumerate() {
            let weight = |i: usize| (-(((i * 11 + q) % 40) as f32)).exp();
            let weights: Vec<f32> = (0..n).map(|i| if here(&i) { weight(i) } else { 0.0 }).collect();
            quantize_weights(&weights, &blocks, ints);
            let rounded = ints.pairs.as_flattened();
            for i in 0..n {
                let exact = if here(&i) { weights[i] * units[i] } else { 0.0 };
                let unit = ints.unit;
                assert!((f32::from(rounded[i]) * unit - exact).abs() <= 0.501 * unit, "{i}: {exact} in {unit}");
            }
        }
        type Way = fn(&[IntWeights], Blocks<'_>, usize, &mut [f32], usize);
        let mut others: Vec<(&str, Way)> = vec![("portable", values::<false, false, false>)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                others.push(("AVX2", values::<true, false, false>));
            }
            if is_x86_feature_detected!("avx512bw") {
                others.push(("AVX-512", values::<true, true, false>));
            }
            if AmxInt8::detect().is_some() {
                // SAFETY: no CPU has AMX without these.
                others.push(("VNNI", |ints, blocks, n, out, stride| unsafe {
                    values_vnni(ints, blocks, n, out, stride)
                }));
                if n_panels.is_multiple_of(2) {
                    others.push(("tiles", |ints, blocks, n, out, stride| {
                        tiles::values(AmxInt8::detect().expect("just was"), ints, blocks, n, out, stride);
                    }));
                }
            }
        }
        let all_blocks = Blocks { all: &blocks, next: &[] };
        values_i8(&ints, all_blocks, n_panels, &mut out, stride);
        for (name, way) in others {
            let mut other = vec![1.0; n_queries * stride];
            way(&ints, all_blocks, n_panels, &mut other, stride);
            assert!(
                other == out,
                "{name} sums the same integers: {n_blocks} blocks, {n_panels} panels, {n_queries} queries"
            );
        }
        for (q, ints) in ints.iter().enumerate() {
            assert_eq!(out[q * stride + n_panels * LANES..][..2], [1.0; 2], "left alone");
            for d in 0..n_panels * LANES {
                let value = |position: usize| {
                    let panel = d / LANES * LANES * LANES;
                    i32::from(
                        all[position / LANES * len
                            + panel
                            + position % LANES / 2 * 2 * LANES
                            + d % LANES * 2
                            + position % 2],
                    )
                };
                let sum: i32 = (0..n).map(|i| i32::from(ints.pairs.as_flattened()[i]) * value(i)).sum();
                let expected = f64::from(ints.unit) * f64::from(sum);
                assert!((f64::from(out[q * stride + d]) - expected).abs() <= expected.abs() * 1e-6);
            }
        }
    }
}

#[test]
fn a_value_that_is_no_number_is_not_lost() {
    let mut units = [1.0; 2 * POSITIONS];
    units[20] = f32::NAN;
    let blocks: Vec<&[u8]> = units.chunks_exact(POSITIONS).map(bytemuck::cast_slice).collect();
    let mut ints = IntWeights::default();
    let mut weights = [1e-9; 2 * POSITIONS];
    quantize_weights(&weights, &blocks, &mut ints);
    assert!(ints.unit.is_nan());
    weights[20] = 0.0;
    quantize_weights(&weights, &blocks, &mut ints);
    assert!(ints.unit.is_finite(), "what is not seen has no weight");
    weights[0] = f32::NAN;
    quantize_weights(&weights, &blocks, &mut ints);
    assert!(ints.unit.is_nan());
}
