//! Kernels for AVX-VNNI: AVX2 with `vpdpbusd` in its short encoding, as CPUs without AVX-512 have it.

pub mod i2s_dpbusd;

pub mod interleaved {
    //! The loops of `arch/x86_64/dpbusd.rs` for registers of 32 bytes.

    crate::arch::x86_64::dpbusd::dpbusd_loops! {
        features: "avx2,avxvnni", token: AvxVnni, register: __m256i, bytes: 32, few: [1 2], side_by_side: [],
        tokens: [1 2 3], sums: 8, zero: _mm256_setzero_si256, set1: _mm256_set1_epi32, load: _mm256_loadu_si256, store: _mm256_storeu_si256, add: _mm256_add_epi32,
        dpbusd: _mm256_dpbusd_avx_epi32
    }
}
