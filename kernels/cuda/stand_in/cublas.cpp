// cuBLAS without a GPU: products in f32, f64 or bf16, summed in double and rounded once, which is at
// least as good as any card does it.
//
// The real one allocates where it has been given no workspace, so that work recorded without one is refused
// here, and it writes into the one that it has, which must be there.

#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

// The driver's: gives the work to its stream, and takes the pointer.
extern "C" int stand_in_perform(std::function<int()> *work) __attribute__((weak));
// The driver's: whether work is recorded now, and whether so many bytes lie in one allocation.
extern "C" bool stand_in_records() __attribute__((weak));
extern "C" bool stand_in_has(const void *address, size_t bytes) __attribute__((weak));

namespace {

enum { ALLOC_FAILED = 3, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

// Numbers of cudaDataType.
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };

double load(const void *values, int type, size_t index) {
    if (type == R_32F) return static_cast<const float *>(values)[index];
    if (type == R_64F) return static_cast<const double *>(values)[index];
    uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t *>(values)[index]) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void store(void *values, int type, size_t index, double value) {
    if (type == R_32F) {
        static_cast<float *>(values)[index] = static_cast<float>(value);
        return;
    }
    if (type == R_64F) {
        static_cast<double *>(values)[index] = value;
        return;
    }
    float narrow = static_cast<float>(value);
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    static_cast<uint16_t *>(values)[index] =
        static_cast<uint16_t>(is_nan ? (bits >> 16) | 64 : rounded >> 16);
}

bool is_known(int type) { return type == R_32F || type == R_64F || type == R_16BF; }

size_t size_of(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

int multiply(int transa, int transb, int m, int n, int k, double scale, const void *a, int a_type,
             int lda, const void *b, int b_type, int ldb, double keep, void *c, int c_type, int ldc) {
    if (!is_known(a_type) || !is_known(b_type) || !is_known(c_type)) return NOT_SUPPORTED;
    // Both factors with the summed index last.
    std::vector<double> rows(static_cast<size_t>(m) * k), columns(static_cast<size_t>(n) * k);
    for (int i = 0; i < m; i++)
        for (int l = 0; l < k; l++)
            rows[static_cast<size_t>(i) * k + l] =
                load(a, a_type, transa ? static_cast<size_t>(i) * lda + l
                                       : static_cast<size_t>(l) * lda + i);
    for (int j = 0; j < n; j++)
        for (int l = 0; l < k; l++)
            columns[static_cast<size_t>(j) * k + l] =
                load(b, b_type, transb ? static_cast<size_t>(l) * ldb + j
                                       : static_cast<size_t>(j) * ldb + l);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            const double *row = &rows[static_cast<size_t>(i) * k];
            const double *column = &columns[static_cast<size_t>(j) * k];
            double sum = 0;
            for (int l = 0; l < k; l++) sum += row[l] * column[l];
            size_t place = static_cast<size_t>(j) * ldc + i;
            // Where nothing is kept, what stands there is not read: it may be no number.
            double before = keep == 0 ? 0 : keep * load(c, c_type, place);
            store(c, c_type, place, scale * sum + before);
        }
    return 0;
}

// A factor where the caller has it, which may be gone when recorded work is done.
double factor(const void *value, int type) {
    return type == R_64F ? *static_cast<const double *>(value) : *static_cast<const float *>(value);
}

// What the next product ends with, for tests.
int next_status = 0;

struct Handle {
    char *workspace = nullptr;
    size_t bytes = 0;
};

} // namespace

extern "C" {

void stand_in_cublas_fail(int status) { next_status = status; }

int cublasCreate_v2(void **made) { *made = new Handle; return 0; }
int cublasDestroy_v2(void *handle) { delete static_cast<Handle *>(handle); return 0; }
// As the real one, it forgets what it was given to work in.
int cublasSetStream_v2(void *handle, void *) {
    *static_cast<Handle *>(handle) = Handle();
    return 0;
}
int cublasSetMathMode(void *, int) { return 0; }
int cublasGetMathMode(void *, int *mode) { *mode = 0; return 0; }
int cublasSetPointerMode_v2(void *, int) { return 0; }
int cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(workspace) % 256) return INVALID_VALUE;
    if (stand_in_has && !stand_in_has(workspace, bytes)) return INVALID_VALUE;
    *static_cast<Handle *>(handle) = Handle{static_cast<char *>(workspace), bytes};
    return 0;
}

int cublasGemmStridedBatchedEx(void *handle, int transa, int transb, int m, int n, int k,
                               const void *alpha, const void *a, int a_type, int lda,
                               long long stride_a, const void *b, int b_type, int ldb,
                               long long stride_b, const void *beta, void *c, int c_type, int ldc,
                               long long stride_c, int batch, int, int) {
    double scale = factor(alpha, a_type), keep = factor(beta, a_type);
    if (int status = std::exchange(next_status, 0)) return status;
    const Handle with = *static_cast<Handle *>(handle);
    if (!with.bytes && stand_in_records && stand_in_records()) return ALLOC_FAILED;
    auto work = [=] {
        if (with.bytes) with.workspace[0] = with.workspace[with.bytes - 1] = 0x7f;
        for (int i = 0; i < batch; i++) {
            const char *of_a = static_cast<const char *>(a) + i * stride_a * size_of(a_type);
            const char *of_b = static_cast<const char *>(b) + i * stride_b * size_of(b_type);
            char *of_c = static_cast<char *>(c) + i * stride_c * size_of(c_type);
            int status = multiply(transa, transb, m, n, k, scale, of_a, a_type, lda, of_b, b_type, ldb,
                                  keep, of_c, c_type, ldc);
            if (status) return status;
        }
        return 0;
    };
    return stand_in_perform ? stand_in_perform(new std::function<int()>(work)) : work();
}

int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                 const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                 const void *beta, void *c, int c_type, int ldc, int, int) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, a_type, lda, 0, b,
                                      b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, 0, 0);
}

int cublasSgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const void *alpha,
                              const void *a, int lda, long long sa, const void *b, int ldb,
                              long long sb, const void *beta, void *c, int ldc, long long sc,
                              int batch) {
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, R_32F, lda, sa, b, R_32F, ldb, sb,
                                      beta, c, R_32F, ldc, sc, batch, 0, 0);
}

int cublasDgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const void *alpha,
                              const void *a, int lda, long long sa, const void *b, int ldb,
                              long long sb, const void *beta, void *c, int ldc, long long sc,
                              int batch) {
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, R_64F, lda, sa, b, R_64F, ldb, sb,
                                      beta, c, R_64F, ldc, sc, batch, 0, 0);
}

} // extern "C"
