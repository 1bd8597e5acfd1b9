//! AVX-512 BF16 loops for products with one short side; `narrow` has what is around them.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi16, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps, _mm512_unpackhi_epi16, _mm512_unpacklo_epi16,
};

use half::bf16;

/// Rows of a short side that are worked on at a time.
pub(super) const GROUP: usize = 8;
/// Elements of a vector of sums.
pub(super) const LANES: usize = 16;
/// Elements along the depth that are multiplied at a time where both sides are read by rows: two
/// pairs, since a group fills half a vector.
pub(super) const QUAD: usize = 4;
/// Rows that are multiplied by a group at a time.
pub(super) const ROWS: usize = 12;
/// Columns that a sum over lines makes at a time.
pub(super) const COLUMNS: usize = 32;

/// The sums of each row by each of a group. `packed` has [`LANES`] pairs for each [`QUAD`] along the
/// depth, two of each of the group. Only where the CPU has AVX-512 F and BF16.
pub(super) fn rows_by_group(rows: &[&[bf16]; ROWS], packed: &[u32]) -> [[f32; GROUP]; ROWS] {
    let depth = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == depth), "rows of {depth}");
    assert_eq!(packed.len(), depth.div_ceil(QUAD) * LANES, "a group of {depth}");
    // SAFETY: the caller's promise; the lengths were checked.
    unsafe { rows_by_group_avx512(rows, packed) }
}

/// Needs what [`rows_by_group`] checks.
#[target_feature(enable = "avx512f,avx512bf16")]
fn rows_by_group_avx512(rows: &[&[bf16]; ROWS], packed: &[u32]) -> [[f32; GROUP]; ROWS] {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    let (packed, _) = packed.as_chunks::<LANES>();
    let whole = rows[0].len() / QUAD;
    for (quad, packed) in packed[..whole].iter().enumerate() {
        let packed = load(packed);
        for (sum, row) in sums.iter_mut().zip(rows) {
            let quad = row.as_ptr().wrapping_add(quad * QUAD).cast::<[u8; 2 * QUAD]>();
            // SAFETY: every row has `whole` quads of 8 bytes.
            let quad = i64::from_ne_bytes(unsafe { *quad });
            *sum = multiply(*sum, _mm512_set1_epi64(quad), packed);
        }
    }
    if let Some(packed) = packed.get(whole) {
        let packed = load(packed);
        for (sum, row) in sums.iter_mut().zip(rows) {
            let rest = row[whole * QUAD..].iter().rev();
            let quad = rest.fold(0, |bits, x| bits << 16 | i64::from(x.to_bits()));
            *sum = multiply(*sum, _mm512_set1_epi64(quad), packed);
        }
    }
    sums.map(|sum| {
        let mut lanes = [0.0; LANES];
        store(sum, &mut lanes);
        std::array::from_fn(|i| lanes[2 * i] + lanes[2 * i + 1])
    })
}

/// The sums of one row, `row` in pairs, by columns: `packed` has for each [`LANES`] columns a vector
/// of pairs for each pair of the row. Only where the CPU has AVX-512 F and BF16.
pub(super) fn row_by_columns(row: &[u32], packed: &[u32], sums: &mut [f32]) {
    let columns = sums.len() / LANES * LANES;
    assert!(packed.len() <= columns * row.len(), "{} pairs by {columns} columns", row.len());
    // SAFETY: the caller's promise.
    unsafe { row_by_columns_avx512(row, packed, sums) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn row_by_columns_avx512(row: &[u32], packed: &[u32], sums: &mut [f32]) {
    let (sums, _) = sums.as_chunks_mut::<LANES>();
    for (sums, packed) in sums.iter_mut().zip(packed.chunks_exact(row.len() * LANES)) {
        let mut sum = _mm512_setzero_ps();
        for (pair, packed) in row.iter().zip(packed.as_chunks::<LANES>().0) {
            sum = multiply(sum, _mm512_set1_epi32(pair.cast_signed()), load(packed));
        }
        store(sum, sums);
    }
}

/// Some columns of some rows, which are `stride` apart.
pub(super) struct Lines<'a> {
    /// From the first column of the first row on.
    pub(super) lines: &'a [bf16],
    pub(super) stride: usize,
    pub(super) count: usize,
    /// 1 to [`COLUMNS`].
    pub(super) columns: usize,
}

/// Adds the lines, each times its factor of each of a group, to `sums`, which [`in_order`] puts in
/// order. `packed` has for each two lines a pair of factors of each of the group. Only where the CPU
/// has AVX-512 F, BW and BF16.
pub(super) fn add_over_lines(lines: &Lines, packed: &[u32], sums: &mut [f32; GROUP * COLUMNS]) {
    let Lines { lines: data, stride, count, columns } = *lines;
    assert!(
        (1..=COLUMNS).contains(&columns) && packed.len() == count.div_ceil(2) * GROUP,
        "{count} lines"
    );
    assert!(count == 0 || (count - 1) * stride + columns <= data.len(), "{count} lines");
    // SAFETY: the caller's promise; the lengths were checked.
    unsafe { add_over_lines_avx512(lines, packed, sums) }
}

/// Needs what [`add_over_lines`] checks.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn add_over_lines_avx512(lines: &Lines, packed: &[u32], sums: &mut [f32; GROUP * COLUMNS]) {
    let Lines { lines: data, stride, count, columns } = *lines;
    let mask = u32::MAX >> (COLUMNS - columns);
    let line = |index: usize| {
        if index >= count {
            return _mm512_setzero_si512();
        }
        // SAFETY: of the 32 elements those past the columns are not read, and the others were
        // checked to be there.
        unsafe { _mm512_maskz_loadu_epi16(mask, data[index * stride..].as_ptr().cast()) }
    };
    let (places, _) = sums.as_chunks_mut::<LANES>();
    let mut sums = [_mm512_setzero_ps(); 2 * GROUP];
    for (sum, place) in sums.iter_mut().zip(&*places) {
        // SAFETY: the place has 16 values.
        *sum = unsafe { _mm512_loadu_ps(place.as_ptr()) };
    }
    for (index, packed) in packed.as_chunks::<GROUP>().0.iter().enumerate() {
        let (first, second) = (line(2 * index), line(2 * index + 1));
        let low = _mm512_unpacklo_epi16(first, second);
        let high = _mm512_unpackhi_epi16(first, second);
        for (sums, factors) in sums.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
            let factors = _mm512_set1_epi32(factors.cast_signed());
            sums[0] = multiply(sums[0], factors, low);
            sums[1] = multiply(sums[1], factors, high);
        }
    }
    sums.into_iter().zip(places).for_each(|(sum, place)| store(sum, place));
}

/// Sums of [`add_over_lines`] as `[GROUP, COLUMNS]`: of each 8 columns, one vector has the first
/// four and the next vector the others.
pub(super) fn in_order(sums: &[f32; GROUP * COLUMNS], to: &mut [f32]) {
    for (sums, to) in sums.chunks_exact(COLUMNS).zip(to.chunks_exact_mut(COLUMNS)) {
        for (column, to) in to.iter_mut().enumerate() {
            *to = sums[column % 8 / 4 * LANES + column / 8 * 4 + column % 4];
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: vectors of the same size, whose every bit pattern is a value.
    let [a, b] = [a, b].map(|x| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) });
    _mm512_dpbf16_ps(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[u32; LANES]) -> __m512i {
    // SAFETY: 16 values of 4 bytes.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sum: __m512, to: &mut [f32; LANES]) {
    // SAFETY: there is room for 16 values.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sum) }
}
