//! The loops of the interleaved layouts on `vpdpbusd`, which adds four products of a code and an activation into an int32 lane:
//! one lane per row, no horizontal sums, nothing can overflow. `Σ w·x = Σ code·x - Σ x`, because a code is `w + 1`.
//!
//! The instruction exists in three encodings with registers of two widths, so the loops are a macro over them: each instruction
//! set has a module made by it, and its kernels add their `Decode` there.

/// Defines `Decode`, `Dpbusd` and the loops for one instruction set. `few` and `tokens` count up to the tokens that share a pass over
/// packed rows and a register tile of a batch; `sums` is how many registers of sums a pass has, so that both leave some for codes;
/// `side_by_side` has the numbers of tokens whose sums of [`STREAMS`](crate::kernel::STREAMS) row tiles fit into as many.
macro_rules! dpbusd_loops {
    (
        features: $features:literal, token: $token:ident, register: $register:ident, bytes: $bytes:literal,
        few: [$($few:literal)*], side_by_side: [$($side_by_side:literal)*], tokens: [$($tokens:literal)*], sums: $sums:literal,
        zero: $zero:ident, set1: $set1:ident, load: $load:ident, store: $store:ident, add: $add:ident, dpbusd: $dpbusd:ident
    ) => {
        use std::arch::x86_64::*;
        use std::marker::PhantomData;
        use std::ops::Range;

        use crate::activation::QuantizedActivations;
        use crate::arch::x86_64::dpbusd::unrolled;
        use crate::arch::x86_64::{ask_ahead, ask_ahead_in_streams, prefetch};
        use crate::isa::{Token, $token};
        use crate::kernel::{KernelInfo, PackedMatrix, Prepared, STREAMS, TernaryKernel};
        use crate::layout::interleaved::{PLANE_BYTES, Shape, TILE_ROWS};
        use crate::team::Team;
        use crate::trit::TernaryMatrix;

        /// Row vectors of a tile.
        pub const VECTORS: usize = PLANE_BYTES / $bytes;
        /// 128 bytes of a tile: a dword for each of the 32 rows.
        pub type Plane = [[u8; $bytes]; VECTORS];

        /// What one layout adds to the loops.
        pub trait Decode: Send + Sync + 'static {
            /// What the kernel is.
            const INFO: &'static KernelInfo;
            /// The layout's tile.
            const SHAPE: Shape;
            /// A tile as stored: as many planes as the shape says.
            type Tile: bytemuck::Pod;
            /// The codes of the steps (4 columns each) that one call decodes, an array of registers.
            type Codes: AsRef<[$register]>;
            /// Steps that one call decodes.
            const STEPS: usize = size_of::<Self::Codes>() / $bytes;

            /// Calls that decode a tile, 4 at most.
            const PARTS: usize = Self::SHAPE.columns / 4 / Self::STEPS;

            /// Lays out `w`.
            fn pack(w: &TernaryMatrix) -> PackedMatrix;

            /// The codes of steps `part * STEPS` and on for the rows of vector `v` of a tile.
            ///
            /// # Safety
            /// The CPU has the features of this instruction set.
            unsafe fn decode(tile: &Self::Tile, v: usize, part: usize) -> Self::Codes;

            /// The sums of the products of `T` tokens with the tiles along `k` of several times 32 rows: as many of each, and `steps` has those
            /// of all.
            ///
            /// # Safety
            /// The CPU has the features of this instruction set.
            #[target_feature(enable = $features)]
            #[allow(dead_code, reason = "registers of 32 bytes are too few")]
            unsafe fn multiply_side_by_side<const T: usize>(
                tiles: [&[Self::Tile]; STREAMS],
                steps: &[[[i8; 4]; T]],
            ) -> SideBySide<T> {
                multiply_side_by_side::<Self, T>(tiles, steps)
            }
        }

        /// Sums of `T` tokens and [`STREAMS`] row tiles.
        pub type SideBySide<const T: usize> = [[[$register; VECTORS]; STREAMS]; T];

        /// The kernel of a layout.
        pub struct Dpbusd<D>(#[allow(dead_code, reason = "the proof of support")] $token, PhantomData<D>);

        impl<D: Decode> Dpbusd<D> {
            /// What it is.
            pub const INFO: &'static KernelInfo = D::INFO;

            /// The kernel, where the CPU has the instructions.
            pub fn new() -> Option<Self> {
                $token::detect().map(|token| Self(token, PhantomData))
            }
        }

        /// From this many tokens on, codes are unpacked to the L1 cache once and used for all tokens. On Emerald Rapids 8 tokens take
        /// 0.8 of the time without, 4 tokens 0.7; in registers of 32 bytes 1.06 and 0.7.
        const UNPACK_FROM: usize = 9;
        /// Tokens that share a pass over the packed rows, the codes in registers.
        const FEW: usize = largest(&[$($few),*]);
        /// Tokens of the register tile of a batch.
        const TOKENS: usize = largest(&[$($tokens),*]);
        /// Columns that are unpacked at once, at most: 16 KB of codes, which leave half of a small L1 cache to the activations. With 256
        /// the sums of a batch were loaded and stored twice as often.
        const COLUMNS: usize = 512;
        const fn largest(of: &[usize]) -> usize {
            of[of.len() - 1]
        }

        /// Chains of sums for each token and vector: as many as keep an instruction of 4 to 5 cycles busy on two ports.
        const fn chains(tokens: usize) -> usize {
            let chains = $sums / (tokens * VECTORS);
            if chains > 4 { 4 } else if chains == 0 { 1 } else { chains }
        }

        impl<D: Decode> TernaryKernel for Dpbusd<D> {
            fn info(&self) -> &'static KernelInfo {
                D::INFO
            }

            fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
                D::pack(w)
            }

            fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
                if x.m < UNPACK_FROM {
                    out.fill_in_steps(team, x, D::SHAPE.columns, usize::MAX, FEW);
                } else {
                    out.fill_in_steps(team, x, D::SHAPE.columns, COLUMNS / D::SHAPE.columns * D::SHAPE.columns, TOKENS);
                }
            }

            fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
                assert_eq!(x.stride, w.k.next_multiple_of(D::SHAPE.columns), "the input was prepared for another k");
                assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
                let aligned = rows.start.is_multiple_of(TILE_ROWS) && rows.end.is_multiple_of(TILE_ROWS);
                assert!(aligned, "{rows:?} cuts a tile");
                // SAFETY: `self` holds the token of these features, which only run-time detection hands out.
                unsafe {
                    if x.m < UNPACK_FROM {
                        few_tokens::<D>(w, x, rows, acc);
                    } else {
                        batch::<D>(w, x, rows, acc);
                    }
                }
            }
        }

        /// The tiles of some rows.
        struct RowTiles<'a, D: Decode> {
            all: &'a [D::Tile],
            /// How many times 32 rows there are.
            n: usize,
            /// Tiles along `k` of each.
            per_row: usize,
        }

        impl<'a, D: Decode> RowTiles<'a, D> {
            fn of(w: &'a PackedMatrix, rows: Range<usize>) -> Self {
                let start = |row| D::SHAPE.row_tile(w.k, row / TILE_ROWS).start;
                let all = bytemuck::cast_slice(&w.data[start(rows.start)..start(rows.end)]);
                Self { all, n: rows.len() / TILE_ROWS, per_row: w.k.div_ceil(D::SHAPE.columns) }
            }

            fn get(&self, i: usize) -> &'a [D::Tile] {
                &self.all[i * self.per_row..][..self.per_row]
            }
        }

        /// All of `k` for less than [`UNPACK_FROM`] tokens, [`FEW`] at a time.
        #[target_feature(enable = $features)]
        fn few_tokens<D: Decode>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
            let n_rows = rows.len();
            let row_tiles = RowTiles::<D>::of(w, rows);
            let done = match x.m {
                $($side_by_side => side_by_side::<D, $side_by_side>(&row_tiles, x, acc, n_rows),)*
                _ => 0,
            };
            for i in done..row_tiles.n {
                let mut token = 0;
                while token < x.m {
                    let acc = &mut acc[token * n_rows + i * TILE_ROWS..];
                    let n_tokens = (x.m - token).min(FEW);
                    match n_tokens {
                        $($few => pass::<D, $few, { chains($few) }>(row_tiles.get(i), x, token, acc, n_rows),)*
                        _ => unreachable!("at most {FEW}"),
                    }
                    token += n_tokens;
                }
            }
        }

        /// All of `k` for `T` tokens, which are all, and [`STREAMS`] row tiles at a time, a part of all from each other. Returns how many row
        /// tiles are done. On an Emerald Rapids with 300 MB of L3 cache, whose core reads 20 GB/s, one token of t5 read 16.3 this way and 11.1 by [`pass`].
        #[target_feature(enable = $features)]
        #[allow(dead_code, reason = "registers of 32 bytes are too few")]
        fn side_by_side<D: Decode, const T: usize>(
            row_tiles: &RowTiles<'_, D>,
            x: &Prepared,
            acc: &mut [i32],
            n_rows: usize,
        ) -> usize {
            let spacing = row_tiles.n / STREAMS;
            for first in 0..spacing {
                let tiles = std::array::from_fn(|s| row_tiles.get(first + s * spacing));
                // SAFETY: this function runs with the features.
                let sums = unsafe { D::multiply_side_by_side(tiles, x.steps::<T>(0, x.stride, 0)) };
                for t in 0..T {
                    let start = $set1(-x.sums[t]);
                    for s in 0..STREAMS {
                        let row = (first + s * spacing) * TILE_ROWS;
                        let acc = acc[t * n_rows + row..][..TILE_ROWS].as_chunks_mut().0;
                        for v in 0..VECTORS {
                            store_sums(&mut acc[v], $add(start, sums[t][s][v]));
                        }
                    }
                }
            }
            STREAMS * spacing
        }

        /// [`Decode::multiply_side_by_side`] for any layout.
        #[target_feature(enable = $features)]
        #[allow(dead_code, reason = "registers of 32 bytes are too few")]
        #[allow(clippy::out_of_bounds_indexing, reason = "in branches that are not taken")]
        fn multiply_side_by_side<D: Decode + ?Sized, const T: usize>(
            tiles: [&[D::Tile]; STREAMS],
            steps: &[[[i8; 4]; T]],
        ) -> SideBySide<T> {
            const { assert!(STREAMS == 4 && D::PARTS <= 4 && VECTORS <= 4) };
            assert!(steps.len() * 4 >= tiles[0].len() * D::SHAPE.columns, "every tile has its steps");
            let mut sums = [[[$zero(); VECTORS]; STREAMS]; T];
            for (i, steps) in (0..tiles[0].len()).zip(steps.chunks_exact(D::SHAPE.columns / 4)) {
                for tiles in tiles {
                    ask_ahead_in_streams(&tiles[i]);
                }
                unrolled!(PART in [0 1 2 3] {
                    if PART < D::PARTS {
                        let steps = &steps[PART * D::STEPS..][..D::STEPS];
                        unrolled!(STREAM in [0 1 2 3] {
                            unrolled!(V in [0 1 2 3] {
                                if V < VECTORS {
                                    // SAFETY: this function runs with the features.
                                    let codes = unsafe { D::decode(&tiles[STREAM][i], V, PART) };
                                    for (&codes, columns) in codes.as_ref().iter().zip(steps) {
                                        for t in 0..T {
                                            let sum = &mut sums[t][STREAM][V];
                                            *sum = $dpbusd(*sum, codes, broadcast(columns[t]));
                                        }
                                    }
                                }
                            });
                        });
                    }
                });
            }
            sums
        }

        /// A row tile for `T` tokens, with `C` chains of sums each. Token `t`'s sums start at `t * stride`.
        #[target_feature(enable = $features)]
        fn pass<D: Decode, const T: usize, const C: usize>(
            tiles: &[D::Tile],
            x: &Prepared,
            token: usize,
            acc: &mut [i32],
            stride: usize,
        ) {
            let steps = x.steps::<T>(0, x.stride, token);
            let mut chains = [[[$zero(); VECTORS]; C]; T];
            for (tile, steps) in tiles.iter().zip(steps.chunks_exact(D::SHAPE.columns / 4)) {
                ask_ahead(tile);
                for (part, steps) in steps.chunks_exact(D::STEPS).enumerate() {
                    for v in 0..VECTORS {
                        // SAFETY: this function runs with the features.
                        let codes = unsafe { D::decode(tile, v, part) };
                        for (i, (&codes, columns)) in codes.as_ref().iter().zip(steps).enumerate() {
                            for t in 0..T {
                                let sum = &mut chains[t][i % C][v];
                                *sum = $dpbusd(*sum, codes, broadcast(columns[t]));
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                let acc = acc[t * stride..][..TILE_ROWS].as_chunks_mut().0;
                for v in 0..VECTORS {
                    let mut sum = $set1(-x.sums[token + t]);
                    for c in 0..C {
                        sum = $add(sum, chains[t][c][v]);
                    }
                    store_sums(&mut acc[v], sum);
                }
            }
        }

        /// A column of 4 codes for each of the 32 rows.
        type Step = Plane;

        /// Unpacked codes. They begin with a cache line: a load that crosses one counts twice.
        #[repr(C, align(64))]
        struct Codes([Step; COLUMNS / 4]);

        /// All of `k` for many tokens: a block of a row tile is unpacked and used for all of them before the next, which is asked for
        /// meanwhile.
        #[target_feature(enable = $features)]
        fn batch<D: Decode>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
            let n_rows = rows.len();
            let mut codes = Codes([[[0; $bytes]; VECTORS]; COLUMNS / 4]);
            let per_block = COLUMNS / D::SHAPE.columns;
            let row_tiles = RowTiles::<D>::of(w, rows);
            for i in 0..row_tiles.n {
                for (block, tiles) in row_tiles.get(i).chunks(per_block).enumerate() {
                    unpack::<D>(tiles, &mut codes.0);
                    let (first, width) = (block * per_block * D::SHAPE.columns, tiles.len() * D::SHAPE.columns);
                    // Not what is padded.
                    let codes = &codes.0[..width.min(w.k - first).div_ceil(4)];
                    let lines_per_turn = (size_of_val(tiles) / 64).div_ceil(x.m.div_ceil(TOKENS));
                    let mut next = tiles.as_ptr_range().end.cast::<u8>();
                    let mut token = 0;
                    while token < x.m {
                        for _ in 0..lines_per_turn {
                            prefetch::<_MM_HINT_T1>(next);
                            next = next.wrapping_add(64);
                        }
                        let acc = &mut acc[token * n_rows + i * TILE_ROWS..];
                        let begin = (block == 0).then_some(&x.sums[token..]);
                        let n_tokens = (x.m - token).min(TOKENS);
                        match n_tokens {
                            $($tokens => steps::<$tokens>(codes, x.steps(first, width, token), begin, acc, n_rows),)*
                            _ => unreachable!("at most {TOKENS}"),
                        }
                        token += n_tokens;
                    }
                }
            }
        }

        /// Spreads at most [`COLUMNS`] columns into one byte per code, step by step.
        #[target_feature(enable = $features)]
        fn unpack<D: Decode>(tiles: &[D::Tile], codes: &mut [Step]) {
            for (tile, steps) in tiles.iter().zip(codes.chunks_exact_mut(D::SHAPE.columns / 4)) {
                for (part, steps) in steps.chunks_exact_mut(D::STEPS).enumerate() {
                    for v in 0..VECTORS {
                        // SAFETY: this function runs with the features.
                        let codes = unsafe { D::decode(tile, v, part) };
                        for (&codes, step) in codes.as_ref().iter().zip(steps.iter_mut()) {
                            // SAFETY: the array holds the bytes of the register; the store needs no alignment.
                            unsafe { $store(step[v].as_mut_ptr().cast(), codes) };
                        }
                    }
                }
            }
        }

        /// The register tile: adds 32 rows x `T` tokens over the columns of `codes`, which may be fewer than there are in `x`. Token `t`'s
        /// sums start at `t * stride`; with `begin`, which has `Σ x` of every token, what is there means nothing yet.
        #[target_feature(enable = $features)]
        fn steps<const T: usize>(
            codes: &[Step],
            x: &[[[i8; 4]; T]],
            begin: Option<&[i32]>,
            acc: &mut [i32],
            stride: usize,
        ) {
            let mut sums = [[$zero(); VECTORS]; T];
            for (step, columns) in codes.iter().zip(x) {
                let mut x = [$zero(); T];
                for t in 0..T {
                    x[t] = broadcast(columns[t]);
                }
                for v in 0..VECTORS {
                    let codes = load(&step[v]);
                    for t in 0..T {
                        sums[t][v] = $dpbusd(sums[t][v], codes, x[t]);
                    }
                }
            }
            for t in 0..T {
                let acc = acc[t * stride..][..TILE_ROWS].as_chunks_mut::<{ $bytes / 4 }>().0;
                for v in 0..VECTORS {
                    let old = match begin {
                        Some(begin) => $set1(-begin[t]),
                        // SAFETY: the array holds the dwords of a register; the load needs no alignment.
                        None => unsafe { $load(acc[v].as_ptr().cast()) },
                    };
                    store_sums(&mut acc[v], $add(old, sums[t][v]));
                }
            }
        }

        /// Four neighbouring columns of one token, in every dword.
        #[inline]
        #[target_feature(enable = $features)]
        fn broadcast([a, b, c, d]: [i8; 4]) -> $register {
            $set1(i32::from_ne_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()]))
        }

        /// A register of bytes.
        #[inline]
        #[target_feature(enable = $features)]
        pub(crate) fn load(bytes: &[u8; $bytes]) -> $register {
            // SAFETY: the array holds the bytes that are read; the load needs no alignment.
            unsafe { $load(bytes.as_ptr().cast()) }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn store_sums(lanes: &mut [i32; $bytes / 4], sums: $register) {
            // SAFETY: the array holds the dwords of the register; the store needs no alignment.
            unsafe { $store(lanes.as_mut_ptr().cast(), sums) };
        }
    };
}
pub(crate) use dpbusd_loops;

/// A loop without a loop: `$body` for each of the numbers, known as the constant `$i`. Sums in an array that is indexed by anything else may
/// be kept in memory.
macro_rules! unrolled {
    ($i:ident in [$($n:literal)*] $body:block) => {
        $({
            const $i: usize = $n;
            $body
        })*
    };
}
pub(crate) use unrolled;
