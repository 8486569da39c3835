//! The loops of x86-64, of ten to twelve independent chains (four of tiles): more than latency times throughput of any of these instructions.

use crate::arch::x86_64::amx::Config;

/// Defines `fn $name(rounds)`: an assembly loop over `$body`, whose instructions must touch the listed registers only.
macro_rules! asm_loop {
    ($name:ident, [$($body:expr),* $(,)?], [$($register:tt),*]) => {
        pub fn $name(rounds: u64) -> u64 {
            // SAFETY: touches no memory and no stack, declares the registers it overwrites, and ends after `rounds >= 1`
            // rounds. Callers list it only where the CPU has its instructions.
            unsafe {
                std::arch::asm!(
                    "vpxor xmm14, xmm14, xmm14",
                    "vpxor xmm15, xmm15, xmm15",
                    "2:",
                    $($body,)*
                    "dec {rounds}",
                    "jnz 2b",
                    rounds = inout(reg) rounds => _,
                    $(out($register) _,)*
                    options(nomem, nostack),
                );
            }
            0
        }
    };
}

/// Defines `fn $name(rounds)`: a loop of four instructions on tiles, which is more than their latency over their 16 cycles.
macro_rules! tile_loop {
    ($name:ident, $instruction:literal) => {
        pub fn $name(rounds: u64) -> u64 {
            // All zeros once configured.
            static CONFIG: Config = Config::new([(16, 64); 8]);
            // SAFETY: reads the configuration, touches no other memory and no stack, declares the registers it overwrites, and ends after
            // `rounds >= 1` rounds. Callers list it only where the CPU has its instructions and the process may use tiles.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{config}]",
                    "2:",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "dec {rounds}",
                    "jnz 2b",
                    "tilerelease",
                    config = in(reg) &raw const CONFIG,
                    rounds = inout(reg) rounds => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                    out("tmm7") _,
                    options(readonly, nostack),
                );
            }
            0
        }
    };
}

/// Defines `fn $name(rounds)`: a loop of twelve additions of 64 bytes of memory at most, all of which stay in the L1 cache.
macro_rules! table_loop {
    ($name:ident, $register:literal, $($number:literal $out:tt),*) => {
        pub fn $name(rounds: u64) -> u64 {
            static TABLE: Table = Table([[0; 64]; 12]);
            // SAFETY: reads the table, touches no other memory and no stack, declares the registers it overwrites, and ends after
            // `rounds >= 1` rounds. Callers list it only where the CPU has its instructions.
            unsafe {
                std::arch::asm!(
                    "2:",
                    $(concat!("vpaddw ", $register, $number, ", ", $register, $number, ", [{table} + 64 * ", $number, "]"),)*
                    "dec {rounds}",
                    "jnz 2b",
                    table = in(reg) &raw const TABLE,
                    rounds = inout(reg) rounds => _,
                    $(out($out) _,)*
                    options(readonly, nostack),
                );
            }
            0
        }
    };
}

/// Cache lines.
#[repr(C, align(64))]
struct Table([[u8; 64]; 12]);

table_loop!(
    tables_256, "ymm", 0 "ymm0", 1 "ymm1", 2 "ymm2", 3 "ymm3", 4 "ymm4", 5 "ymm5", 6 "ymm6", 7 "ymm7", 8 "ymm8", 9 "ymm9", 10 "ymm10",
    11 "ymm11"
);
table_loop!(
    tables_512, "zmm", 0 "zmm0", 1 "zmm1", 2 "zmm2", 3 "zmm3", 4 "zmm4", 5 "zmm5", 6 "zmm6", 7 "zmm7", 8 "zmm8", 9 "zmm9", 10 "zmm10",
    11 "zmm11"
);
tile_loop!(amx_int8, "tdpbssd");
tile_loop!(amx_bf16, "tdpbf16ps");
asm_loop!(
    maddubs_paddw,
    [
        "vpmaddubsw ymm10, ymm14, ymm15",
        "vpaddw ymm0, ymm0, ymm10",
        "vpmaddubsw ymm11, ymm14, ymm15",
        "vpaddw ymm1, ymm1, ymm11",
        "vpmaddubsw ymm12, ymm14, ymm15",
        "vpaddw ymm2, ymm2, ymm12",
        "vpmaddubsw ymm13, ymm14, ymm15",
        "vpaddw ymm3, ymm3, ymm13",
        "vpmaddubsw ymm10, ymm14, ymm15",
        "vpaddw ymm4, ymm4, ymm10",
        "vpmaddubsw ymm11, ymm14, ymm15",
        "vpaddw ymm5, ymm5, ymm11",
        "vpmaddubsw ymm12, ymm14, ymm15",
        "vpaddw ymm6, ymm6, ymm12",
        "vpmaddubsw ymm13, ymm14, ymm15",
        "vpaddw ymm7, ymm7, ymm13",
    ],
    [
        "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14",
        "ymm15"
    ]
);
asm_loop!(
    vnni_256,
    [
        "{{vex}} vpdpbusd ymm0, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm1, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm2, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm3, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm4, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm5, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm6, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm7, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm8, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm9, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm10, ymm14, ymm15",
        "{{vex}} vpdpbusd ymm11, ymm14, ymm15",
    ],
    [
        "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm14",
        "ymm15"
    ]
);
asm_loop!(
    vnni_512,
    [
        "vpdpbusd zmm0, zmm14, zmm15",
        "vpdpbusd zmm1, zmm14, zmm15",
        "vpdpbusd zmm2, zmm14, zmm15",
        "vpdpbusd zmm3, zmm14, zmm15",
        "vpdpbusd zmm4, zmm14, zmm15",
        "vpdpbusd zmm5, zmm14, zmm15",
        "vpdpbusd zmm6, zmm14, zmm15",
        "vpdpbusd zmm7, zmm14, zmm15",
        "vpdpbusd zmm8, zmm14, zmm15",
        "vpdpbusd zmm9, zmm14, zmm15",
        "vpdpbusd zmm10, zmm14, zmm15",
        "vpdpbusd zmm11, zmm14, zmm15",
    ],
    [
        "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm14",
        "zmm15"
    ]
);
asm_loop!(
    fma_256,
    [
        "vfmadd231ps ymm0, ymm14, ymm15",
        "vfmadd231ps ymm1, ymm14, ymm15",
        "vfmadd231ps ymm2, ymm14, ymm15",
        "vfmadd231ps ymm3, ymm14, ymm15",
        "vfmadd231ps ymm4, ymm14, ymm15",
        "vfmadd231ps ymm5, ymm14, ymm15",
        "vfmadd231ps ymm6, ymm14, ymm15",
        "vfmadd231ps ymm7, ymm14, ymm15",
        "vfmadd231ps ymm8, ymm14, ymm15",
        "vfmadd231ps ymm9, ymm14, ymm15",
        "vfmadd231ps ymm10, ymm14, ymm15",
        "vfmadd231ps ymm11, ymm14, ymm15",
    ],
    [
        "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm14",
        "ymm15"
    ]
);
asm_loop!(
    fma_512,
    [
        "vfmadd231ps zmm0, zmm14, zmm15",
        "vfmadd231ps zmm1, zmm14, zmm15",
        "vfmadd231ps zmm2, zmm14, zmm15",
        "vfmadd231ps zmm3, zmm14, zmm15",
        "vfmadd231ps zmm4, zmm14, zmm15",
        "vfmadd231ps zmm5, zmm14, zmm15",
        "vfmadd231ps zmm6, zmm14, zmm15",
        "vfmadd231ps zmm7, zmm14, zmm15",
        "vfmadd231ps zmm8, zmm14, zmm15",
        "vfmadd231ps zmm9, zmm14, zmm15",
        "vfmadd231ps zmm10, zmm14, zmm15",
        "vfmadd231ps zmm11, zmm14, zmm15",
    ],
    [
        "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm14",
        "zmm15"
    ]
);
asm_loop!(
    bf16_512,
    [
        "vdpbf16ps zmm0, zmm14, zmm15",
        "vdpbf16ps zmm1, zmm14, zmm15",
        "vdpbf16ps zmm2, zmm14, zmm15",
        "vdpbf16ps zmm3, zmm14, zmm15",
        "vdpbf16ps zmm4, zmm14, zmm15",
        "vdpbf16ps zmm5, zmm14, zmm15",
        "vdpbf16ps zmm6, zmm14, zmm15",
        "vdpbf16ps zmm7, zmm14, zmm15",
        "vdpbf16ps zmm8, zmm14, zmm15",
        "vdpbf16ps zmm9, zmm14, zmm15",
        "vdpbf16ps zmm10, zmm14, zmm15",
        "vdpbf16ps zmm11, zmm14, zmm15",
    ],
    [
        "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm14",
        "zmm15"
    ]
);
