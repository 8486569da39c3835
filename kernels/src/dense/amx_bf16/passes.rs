//! What tiles do, as text: their intrinsics are not stable. The compiler does not know of tiles, so they never outlive one block of asm, from
//! their configuration to their release.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::offset_of;

use super::{COLUMNS, Pair, SECOND, SIDE, UPPER};
use crate::arch::x86_64::amx::Config;

const _: () = assert!(SECOND == 18432, "as the text of the instructions has it");

/// Four tiles of sums, two of weights and two of the inputs of `group` tokens.
pub fn config_for(group: usize) -> Config {
    let (sums, weights, inputs) = ((SIDE, 4 * group), (SIDE, 2 * COLUMNS), (COLUMNS / 2, 4 * group));
    Config::new([sums, sums, sums, sums, weights, weights, inputs, inputs])
}

/// Some steps of 32 rows, and the tokens that they are multiplied by.
#[repr(C)]
pub struct Pass {
    /// [`config_for`] the tokens of a group.
    pub config: *const Config,
    /// The first parts of the first row; second ones lie [`SECOND`] bytes behind. For [`split_and_multiply`] and [`split_and_multiply_pairs`] the row as it is stored.
    pub weights: *const u8,
    /// From row to row.
    pub row_bytes: usize,
    /// At least one.
    pub n_steps: usize,
    /// For every step and part of the first group a tile.
    pub x: *const Pair,
    /// From one group to the next.
    pub group_bytes: usize,
    /// Bytes of the pairs of a group.
    pub stride: usize,
    /// Of up to 16 tokens, at least one. Where there are more, all are of 16.
    pub n_groups: usize,
    /// For every group two tiles; see [`split_and_multiply_pairs`].
    pub sums: *mut f32,
    /// Whether there are sums, to be added to.
    pub more: bool,
    /// For those that split: twice two tiles of first parts, and [`SECOND`] bytes behind of second ones.
    pub room: *mut u8,
}

/// Defines a function that does a [`Pass`]. `$one` and `$two` are the text of a step of one and of two groups, which goes on to the next.
macro_rules! multiply {
    ($(#[$doc:meta])* $name:ident, $one:ident, $two:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU has AMX, and this process may use it. The pass says what its pointers point to.
        pub unsafe fn $name(pass: &Pass) {
            // SAFETY: by the contract.
            unsafe {
                asm!(
                    "mov {a}, [{pass} + {CONFIG}]",
                    "ldtilecfg [{a}]",
                    "mov {line:e}, 64",
                    "2:",
                    "mov {a}, [{pass} + {WEIGHTS}]",
                    "mov {b}, {row_bytes}",
                    "shl {b}, 4",
                    "add {b}, {a}",
                    "mov {n}, [{pass} + {N_STEPS}]",
                    "mov {next}, {x}",
                    "add {next}, [{pass} + {GROUP_BYTES}]",
                    "cmp {groups}, 1",
                    "je 5f",

                    // Two groups.
                    "mov {x2}, {next}",
                    "cmp byte ptr [{pass} + {MORE}], 0",
                    "je 3f",
                    "tileloadd tmm0, [{sums} + {line}]",
                    "tileloadd tmm1, [{sums} + {line} + 1024]",
                    "tileloadd tmm2, [{sums} + {line} + 2048]",
                    "tileloadd tmm3, [{sums} + {line} + 3072]",
                    "jmp 4f",
                    "3:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "4:",
                    $two!(),
                    "dec {n}",
                    "jnz 4b",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    "tilestored [{sums} + {line} + 2048], tmm2",
                    "tilestored [{sums} + {line} + 3072], tmm3",
                    "add {sums}, 4096",
                    "mov {x}, {next}",
                    "add {x}, [{pass} + {GROUP_BYTES}]",
                    "sub {groups}, 2",
                    "jnz 2b",
                    "jmp 9f",

                    // One, the last.
                    "5:",
                    "cmp byte ptr [{pass} + {MORE}], 0",
                    "je 6f",
                    "tileloadd tmm0, [{sums} + {line}]",
                    "tileloadd tmm1, [{sums} + {line} + 1024]",
                    "jmp 7f",
                    "6:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "7:",
                    $one!(),
                    "add {a}, 64",
                    "add {b}, 64",
                    "dec {n}",
                    "jnz 7b",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    "9:",
                    "tilerelease",
                    pass = in(reg) pass,
                    a = out(reg) _,
                    b = out(reg) _,
                    row_bytes = in(reg) pass.row_bytes,
                    x = inout(reg) pass.x => _,
                    x2 = out(reg) _,
                    next = out(reg) _,
                    stride = in(reg) pass.stride,
                    groups = inout(reg) pass.n_groups => _,
                    sums = inout(reg) pass.sums => _,
                    line = out(reg) _,
                    n = out(reg) _,
                    CONFIG = const offset_of!(Pass, config),
                    WEIGHTS = const offset_of!(Pass, weights),
                    N_STEPS = const offset_of!(Pass, n_steps),
                    GROUP_BYTES = const offset_of!(Pass, group_bytes),
                    MORE = const offset_of!(Pass, more),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                    out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Text of a step of one group: `a` and `b` are the first rows of two tiles of weights, `row_bytes` apart.
macro_rules! one {
    () => {
        "tileloadd tmm4, [{a} + {row_bytes}]
         tileloadd tmm6, [{x} + {stride}]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{b} + {row_bytes}]
         tdpbf16ps tmm1, tmm5, tmm6
         lea {x}, [{x} + 8*{stride}]
         lea {x}, [{x} + 8*{stride}]"
    };
}

/// Text of a step of two groups.
macro_rules! two {
    () => {
        "tileloadd tmm4, [{a} + {row_bytes}]
         tileloadd tmm6, [{x} + {stride}]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{b} + {row_bytes}]
         tdpbf16ps tmm1, tmm5, tmm6
         tileloadd tmm7, [{x2} + {stride}]
         tdpbf16ps tmm2, tmm4, tmm7
         tdpbf16ps tmm3, tmm5, tmm7
         add {a}, 64
         add {b}, 64
         add {x}, 1024
         add {x2}, 1024"
    };
}

/// Text of a step of one group, of two parts.
macro_rules! one_split {
    () => {
        "tileloadd tmm4, [{a} + {row_bytes}]
         tileloadd tmm6, [{x} + {stride}]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{b} + {row_bytes}]
         tdpbf16ps tmm1, tmm5, tmm6
         lea {x2}, [{x} + 8*{stride}]
         lea {x2}, [{x2} + 8*{stride}]
         tileloadd tmm7, [{x2} + {stride}]
         tdpbf16ps tmm0, tmm4, tmm7
         tdpbf16ps tmm1, tmm5, tmm7
         tileloadd tmm4, [{a} + {row_bytes} + 18432]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{b} + {row_bytes} + 18432]
         tdpbf16ps tmm1, tmm5, tmm6
         lea {x}, [{x2} + 8*{stride}]
         lea {x}, [{x} + 8*{stride}]"
    };
}

/// Text of a step of two groups, of two parts.
macro_rules! two_split {
    () => {
        "tileloadd tmm4, [{a} + {row_bytes}]
         tileloadd tmm6, [{x} + {stride}]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{b} + {row_bytes}]
         tdpbf16ps tmm1, tmm5, tmm6
         tileloadd tmm7, [{x2} + {stride}]
         tdpbf16ps tmm2, tmm4, tmm7
         tdpbf16ps tmm3, tmm5, tmm7
         tileloadd tmm6, [{x} + {stride} + 1024]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm5, tmm6
         tileloadd tmm7, [{x2} + {stride} + 1024]
         tdpbf16ps tmm2, tmm4, tmm7
         tdpbf16ps tmm3, tmm5, tmm7
         tileloadd tmm4, [{a} + {row_bytes} + 18432]
         tileloadd tmm6, [{x} + {stride}]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{b} + {row_bytes} + 18432]
         tdpbf16ps tmm1, tmm5, tmm6
         tileloadd tmm7, [{x2} + {stride}]
         tdpbf16ps tmm2, tmm4, tmm7
         tdpbf16ps tmm3, tmm5, tmm7
         add {a}, 64
         add {b}, 64
         add {x}, 2048
         add {x2}, 2048"
    };
}

multiply! {
    /// Adds one product a step to every sum.
    multiply, one, two
}
multiply! {
    /// Adds three: of both first parts, of the second part of the input and the first of the weight, and the other way around.
    multiply_split, one_split, two_split
}

/// Splits F16 weights and multiplies what was split a step before: what was just written would keep tiles waiting.
///
/// # Safety
/// The CPU has AMX, and this process may use it. The pass, which begins with the first step and has one group, says what
/// its pointers point to.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn split_and_multiply(pass: &Pass) {
    // SAFETY: by the contract.
    unsafe {
        asm!(
            "ldtilecfg [{a}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "mov {row_bytes:e}, 64",
            "xor {i:e}, {i:e}",
            "2:",
            "cmp {i}, {n}",
            "je 4f",
            "mov {a}, {i}",
            "shl {a}, 11",
            "and {a:e}, 2048",
            "add {a}, {room}",
            "mov {b}, {weights}",
            "mov {x2:e}, 8",
            "3:",
            split_row!("{b}", "{a}", "0"),
            split_row!("{b} + {stored_bytes}", "{a}", "64"),
            split_row!("{b} + 2*{stored_bytes}", "{a}", "128"),
            split_row!("{b} + {stored_bytes_3}", "{a}", "192"),
            "lea {b}, [{b} + 4*{stored_bytes}]",
            "add {a}, 256",
            "dec {x2}",
            "jnz 3b",
            "add {weights}, 64",
            "4:",
            "test {i}, {i}",
            "jz 5f",
            "lea {a}, [{i} - 1]",
            "shl {a}, 11",
            "and {a:e}, 2048",
            "add {a}, {room}",
            "lea {b}, [{a} + 1024]",
            one_split!(),
            "5:",
            "inc {i}",
            "cmp {i}, {n}",
            "jbe 2b",
            "tilestored [{sums} + {row_bytes}], tmm0",
            "tilestored [{sums} + {row_bytes} + 1024], tmm1",
            "tilerelease",
            a = inout(reg) pass.config => _,
            i = out(reg) _,
            n = in(reg) pass.n_steps,
            room = in(reg) pass.room,
            b = out(reg) _,
            weights = inout(reg) pass.weights => _,
            stored_bytes = in(reg) pass.row_bytes,
            stored_bytes_3 = in(reg) 3 * pass.row_bytes,
            x = inout(reg) pass.x => _,
            x2 = out(reg) _,
            stride = in(reg) pass.stride,
            row_bytes = out(reg) _,
            sums = in(reg) pass.sums,
            in("zmm30") _mm512_set1_epi32(!0xffff),
            in("zmm31") _mm512_loadu_si512(UPPER.as_ptr().cast()),
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

/// Text that writes the parts of 32 weights of a row to its place in two tiles, as [`OfF16::load`] makes them.
macro_rules! split_row {
    ($row:literal, $to:literal, $at:expr) => {
        concat!(
            "vcvtph2ps zmm16, [",
            $row,
            "]\n",
            "vcvtph2ps zmm17, [",
            $row,
            " + 32]\n",
            "vpandd zmm18, zmm16, zmm30\n",
            "vpandd zmm19, zmm17, zmm30\n",
            "vsubps zmm16, zmm16, zmm18\n",
            "vsubps zmm17, zmm17, zmm19\n",
            "vpermt2w zmm18, zmm31, zmm19\n",
            "vpermt2w zmm16, zmm31, zmm17\n",
            "vmovdqa64 [",
            $to,
            " + ",
            $at,
            "], zmm18\n",
            "vmovdqa64 [",
            $to,
            " + ",
            $at,
            " + 18432], zmm16\n",
        )
    };
}
use split_row;

/// [`multiply_split`] of weights as they are stored, two groups at a time, of which there are two at least: while a step is multiplied the next is
/// split, between the products. Behind an odd number of groups there is room for the sums of one more. `x`, `sums` and `n_groups` are not the same
/// afterwards.
///
/// # Safety
/// That of [`split_and_multiply`], but for the first step and the group.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn split_and_multiply_pairs(pass: &mut Pass) {
    // SAFETY: by the contract.
    unsafe {
        asm!(
            "mov {a}, [{pass} + {CONFIG}]",
            "ldtilecfg [{a}]",
            "mov {line:e}, 64",
            "2:",
            "mov {x}, [{pass} + {X}]",
            "mov {x2}, {x}",
            "add {x2}, [{pass} + {GROUP_BYTES}]",
            // The last of an odd number goes with itself.
            "cmp qword ptr [{pass} + {N_GROUPS}], 1",
            "cmove {x2}, {x}",
            "mov {a}, [{pass} + {SUMS}]",
            "cmp byte ptr [{pass} + {MORE}], 0",
            "je 3f",
            "tileloadd tmm0, [{a} + {line}]",
            "tileloadd tmm1, [{a} + {line} + 1024]",
            "tileloadd tmm2, [{a} + {line} + 2048]",
            "tileloadd tmm3, [{a} + {line} + 3072]",
            "jmp 4f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",

            "4:",
            "mov {weights}, [{pass} + {WEIGHTS}]",
            "mov {n}, [{pass} + {N_STEPS}]",
            "mov {b}, {weights}",
            split_four!("0"),
            split_four!("256"),
            split_four!("512"),
            split_four!("768"),
            split_four!("1024"),
            split_four!("1280"),
            split_four!("1536"),
            split_four!("1792"),
            "xchg {step}, {next}",
            "5:",
            "dec {n}",
            "jz 6f",
            "add {weights}, 64",
            "mov {b}, {weights}",
            two_split_and!(
                split_four!("0"),
                split_four!("256"),
                split_four!("512"),
                split_four!("768"),
                split_four!("1024"),
                split_four!("1280"),
                split_four!("1536"),
                split_four!("1792")
            ),
            "add {x}, 2048",
            "add {x2}, 2048",
            "xchg {step}, {next}",
            "jmp 5b",
            "6:",
            two_split_and!("", "", "", "", "", "", "", ""),

            "mov {a}, [{pass} + {SUMS}]",
            "tilestored [{a} + {line}], tmm0",
            "tilestored [{a} + {line} + 1024], tmm1",
            "tilestored [{a} + {line} + 2048], tmm2",
            "tilestored [{a} + {line} + 3072], tmm3",
            "add {a}, 4096",
            "mov [{pass} + {SUMS}], {a}",
            "mov {a}, [{pass} + {GROUP_BYTES}]",
            "add [{pass} + {X}], {a}",
            "add [{pass} + {X}], {a}",
            "sub qword ptr [{pass} + {N_GROUPS}], 2",
            "ja 2b",
            "tilerelease",
            pass = in(reg) pass,
            a = out(reg) _,
            b = out(reg) _,
            n = out(reg) _,
            step = inout(reg) pass.room => _,
            next = inout(reg) pass.room.wrapping_add(2048) => _,
            weights = out(reg) _,
            stored_bytes = in(reg) pass.row_bytes,
            x = out(reg) _,
            x2 = out(reg) _,
            line = out(reg) _,
            CONFIG = const offset_of!(Pass, config),
            WEIGHTS = const offset_of!(Pass, weights),
            N_STEPS = const offset_of!(Pass, n_steps),
            X = const offset_of!(Pass, x),
            GROUP_BYTES = const offset_of!(Pass, group_bytes),
            N_GROUPS = const offset_of!(Pass, n_groups),
            SUMS = const offset_of!(Pass, sums),
            MORE = const offset_of!(Pass, more),
            in("zmm30") _mm512_set1_epi32(!0xffff),
            in("zmm31") _mm512_loadu_si512(UPPER.as_ptr().cast()),
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

/// Text that splits four rows of a step to their place at `next`, and goes on to the rows behind.
macro_rules! split_four {
    ($at:literal) => {
        concat!(
            split_row!("{b}", "{next}", $at),
            split_row!("{b} + {stored_bytes}", "{next}", concat!($at, " + 64")),
            "lea {b}, [{b} + 2*{stored_bytes}]\n",
            split_row!("{b}", "{next}", concat!($at, " + 128")),
            split_row!("{b} + {stored_bytes}", "{next}", concat!($at, " + 192")),
            "lea {b}, [{b} + 2*{stored_bytes}]\n",
        )
    };
}
use split_four;

/// Text of a step of two groups, of two parts, with other instructions between the first products.
macro_rules! two_split_and {
    ($a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr, $g:expr, $h:expr) => {
        concat!(
            "tileloadd tmm4, [{step} + {line}]\n",
            "tileloadd tmm6, [{x} + {line}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $a,
            "tileloadd tmm5, [{step} + {line} + 1024]\n",
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            $b,
            "tileloadd tmm7, [{x2} + {line}]\n",
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            $c,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $d,
            "tileloadd tmm6, [{x} + {line} + 1024]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $e,
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            $f,
            "tileloadd tmm7, [{x2} + {line} + 1024]\n",
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            $g,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $h,
            "tileloadd tmm4, [{step} + {line} + 18432]\n",
            "tileloadd tmm6, [{x} + {line}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm5, [{step} + {line} + 1024 + 18432]\n",
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            "tileloadd tmm7, [{x2} + {line}]\n",
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}
use two_split_and;
