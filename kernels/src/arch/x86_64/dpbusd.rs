//! The loops of the interleaved layouts on `vpdpbusd`, which adds four products of a code and an activation into an int32 lane:
//! one lane per row, no horizontal sums, nothing can overflow. `Σ w·x = Σ code·x - Σ x`, because a code is `w + 1`.
//!
//! The instruction exists in three encodings with registers of two widths, so the loops are a macro over them: each instruction
//! set has a module made by it, and its kernels add their `Decode` there.

/// Defines `Decode`, `Dpbusd` and the loops for one instruction set. `tokens` is how many tokens the register tile of a batch
/// holds.
macro_rules! dpbusd_loops {
    (
        features: $features:literal, token: $token:ident, register: $register:ident, bytes: $bytes:literal,
        tokens: $tokens:literal, zero: $zero:ident, set1: $set1:ident, load: $load:ident, store: $store:ident, add: $add:ident,
        dpbusd: $dpbusd:ident
    ) => {
        use std::arch::x86_64::*;
        use std::marker::PhantomData;
        use std::ops::Range;

        use crate::activation::QuantizedActivations;
        use crate::isa::{Token, $token};
        use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
        use crate::layout::interleaved::{PLANE_BYTES, Shape, TILE_ROWS};
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

            /// Lays out `w`.
            fn pack(w: &TernaryMatrix) -> PackedMatrix;

            /// The codes of steps `part * STEPS` and on for the rows of vector `v` of a tile.
            ///
            /// # Safety
            /// The CPU has the features of this instruction set.
            unsafe fn decode(tile: &Self::Tile, v: usize, part: usize) -> Self::Codes;
        }

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

        /// From this many tokens on, codes are unpacked to the L1 cache once and used for all tokens.
        const UNPACK_FROM: usize = 8;
        /// Row tiles that one token reads in turn, from as many places: a single stream leaves bandwidth unused.
        const STREAMS: usize = 4;
        /// Columns that a stream reads before it is the next one's turn, and that are unpacked at once, at most.
        const COLUMNS: usize = 256;
        /// Tokens of the register tile of a batch.
        const TOKENS: usize = $tokens;

        impl<D: Decode> TernaryKernel for Dpbusd<D> {
            fn info(&self) -> &'static KernelInfo {
                D::INFO
            }

            fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
                D::pack(w)
            }

            fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
                if x.m < UNPACK_FROM {
                    out.fill_in_order(x, D::SHAPE.columns);
                } else {
                    out.fill_in_blocks(x, D::SHAPE.columns, COLUMNS / D::SHAPE.columns * D::SHAPE.columns);
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

        /// The tiles of rows `32 index .. 32 index + 32`, along `k`.
        fn row_tile<D: Decode>(w: &PackedMatrix, index: usize) -> &[D::Tile] {
            bytemuck::cast_slice(&w.data[D::SHAPE.row_tile(w.k, index)])
        }

        /// All of `k` for less than [`UNPACK_FROM`] tokens, two or one at a time, from [`STREAMS`] places in turn.
        #[target_feature(enable = $features)]
        fn few_tokens<D: Decode>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
            let (first, n_tiles, n_rows) = (rows.start / TILE_ROWS, rows.len() / TILE_ROWS, rows.len());
            let spacing = n_tiles.div_ceil(STREAMS);
            let mut token = 0;
            while token < x.m {
                let n_tokens = (x.m - token).min(2);
                for i in 0..spacing {
                    // The last places may hold a tile less.
                    let n_streams = (n_tiles - i).div_ceil(spacing);
                    let mut tiles: [&[D::Tile]; STREAMS] = [&[]; STREAMS];
                    for (s, tiles) in tiles[..n_streams].iter_mut().enumerate() {
                        *tiles = row_tile::<D>(w, first + i + s * spacing);
                    }
                    let acc = &mut acc[token * n_rows + i * TILE_ROWS..];
                    // `vpdpbusd` takes 4 to 5 cycles: eight sums at once keep it busy, and leave registers for the codes.
                    match n_tokens {
                        1 => stream::<D, 1, { 8 / VECTORS }>(
                            &tiles[..n_streams],
                            x,
                            token,
                            acc,
                            spacing * TILE_ROWS,
                            n_rows,
                        ),
                        _ => stream::<D, 2, { 4 / VECTORS }>(
                            &tiles[..n_streams],
                            x,
                            token,
                            acc,
                            spacing * TILE_ROWS,
                            n_rows,
                        ),
                    }
                }
                token += n_tokens;
            }
        }

        /// Some row tiles for `T` tokens, the codes in registers, with `C` chains of sums each. The sums of row tile `s` and
        /// token `t` start at `s * tile_stride + t * stride`.
        #[target_feature(enable = $features)]
        fn stream<D: Decode, const T: usize, const C: usize>(
            tiles: &[&[D::Tile]],
            x: &Prepared,
            first: usize,
            acc: &mut [i32],
            tile_stride: usize,
            stride: usize,
        ) {
            let per_turn = COLUMNS / D::SHAPE.columns;
            let mut sums = [[[$zero(); VECTORS]; T]; STREAMS];
            for turn in 0..tiles[0].len().div_ceil(per_turn) {
                for (tiles, sums) in tiles.iter().zip(&mut sums) {
                    let mut chains = [[[$zero(); VECTORS]; C]; T];
                    let tiles = &tiles[turn * per_turn..];
                    for (i, tile) in tiles.iter().take(per_turn).enumerate() {
                        let column = (turn * per_turn + i) * D::SHAPE.columns;
                        for part in 0..D::SHAPE.columns / 4 / D::STEPS {
                            let mut columns: [&[[i8; 4]]; T] = [&[]; T];
                            for t in 0..T {
                                let x = &x.row(first + t)[column + 4 * part * D::STEPS..][..4 * D::STEPS];
                                columns[t] = x.as_chunks().0;
                            }
                            for v in 0..VECTORS {
                                // SAFETY: this function runs with the features.
                                let codes = unsafe { D::decode(tile, v, part) };
                                for (i, &codes) in codes.as_ref().iter().enumerate() {
                                    for t in 0..T {
                                        let sum = &mut chains[t][i % C][v];
                                        *sum = $dpbusd(*sum, codes, broadcast(columns[t][i]));
                                    }
                                }
                            }
                        }
                    }
                    for t in 0..T {
                        for chain in &chains[t] {
                            for v in 0..VECTORS {
                                sums[t][v] = $add(sums[t][v], chain[v]);
                            }
                        }
                    }
                }
            }
            for s in 0..tiles.len() {
                for t in 0..T {
                    let correction = $set1(-x.sums[first + t]);
                    let acc = &mut acc[s * tile_stride + t * stride..][..TILE_ROWS];
                    for (lanes, &sum) in acc.as_chunks_mut().0.iter_mut().zip(&sums[s][t]) {
                        store_sums(lanes, $add(sum, correction));
                    }
                }
            }
        }

        /// A column of 4 codes for each of the 32 rows.
        type Step = Plane;

        /// Unpacked codes. They begin with a cache line: a load that crosses one counts twice.
        #[repr(C, align(64))]
        struct Codes([Step; COLUMNS / 4]);

        /// All of `k` for many tokens: a block of a row tile is unpacked and used for all of them before the next.
        #[target_feature(enable = $features)]
        fn batch<D: Decode>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
            let n_rows = rows.len();
            let mut codes = Codes([[[0; $bytes]; VECTORS]; COLUMNS / 4]);
            let per_block = COLUMNS / D::SHAPE.columns;
            for (row_tile_index, index) in (rows.start / TILE_ROWS..rows.end / TILE_ROWS).enumerate() {
                let at = |token: usize| token * n_rows + row_tile_index * TILE_ROWS;
                for token in 0..x.m {
                    acc[at(token)..][..TILE_ROWS].fill(-x.sums[token]);
                }
                for (block, tiles) in row_tile::<D>(w, index).chunks(per_block).enumerate() {
                    unpack::<D>(tiles, &mut codes.0);
                    let (first, width) = (block * per_block * D::SHAPE.columns, tiles.len() * D::SHAPE.columns);
                    let codes = &codes.0[..width / 4];
                    let mut token = 0;
                    while token + TOKENS <= x.m {
                        steps::<TOKENS>(codes, x, first, token, &mut acc[at(token)..], n_rows);
                        token += TOKENS;
                    }
                    while token < x.m {
                        steps::<1>(codes, x, first, token, &mut acc[at(token)..], n_rows);
                        token += 1;
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

        /// The register tile: adds 32 rows x `T` tokens over the columns of `codes`. Token `t`'s sums start at `t * stride`.
        #[target_feature(enable = $features)]
        fn steps<const T: usize>(
            codes: &[Step],
            x: &Prepared,
            first: usize,
            token: usize,
            acc: &mut [i32],
            stride: usize,
        ) {
            // Plain loops: closures given to `array::map` are compiled without the features and not always inlined.
            let mut columns: [&[[i8; 4]]; T] = [&[]; T];
            for t in 0..T {
                columns[t] = x.block(first, 4 * codes.len(), token + t).as_chunks().0;
            }
            let mut sums = [[$zero(); VECTORS]; T];
            for (i, step) in codes.iter().enumerate() {
                let mut codes = [$zero(); VECTORS];
                for v in 0..VECTORS {
                    codes[v] = load(&step[v]);
                }
                for t in 0..T {
                    let x = broadcast(columns[t][i]);
                    for v in 0..VECTORS {
                        sums[t][v] = $dpbusd(sums[t][v], codes[v], x);
                    }
                }
            }
            for t in 0..T {
                let acc = acc[t * stride..][..TILE_ROWS].as_chunks_mut::<{ $bytes / 4 }>().0;
                for v in 0..VECTORS {
                    // SAFETY: the array holds the dwords of a register; the load needs no alignment.
                    let old = unsafe { $load(acc[v].as_ptr().cast()) };
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
        pub fn load(bytes: &[u8; $bytes]) -> $register {
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
