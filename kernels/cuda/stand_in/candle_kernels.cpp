// What candle's element-wise kernels, copies, look-ups and reductions do, written out as loops. Names and
// arguments are those of candle-kernels 0.11.

#include "candle_kernels.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
    bf16() = default;
    bf16(float value) {
        uint32_t wide;
        memcpy(&wide, &value, sizeof wide);
        bool is_nan = (wide & 0x7fffffff) > 0x7f800000;
        uint32_t rounded = wide + 0x7fff + ((wide >> 16) & 1);
        bits = static_cast<uint16_t>(is_nan ? (wide >> 16) | 64 : rounded >> 16);
    }
    operator float() const {
        uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
};

// 5 bits of exponent and 10 of fraction; only stored and loaded.
struct f16 {
    uint16_t bits;
    f16() = default;
    f16(float value) {
        uint32_t wide;
        memcpy(&wide, &value, sizeof wide);
        uint32_t sign = wide >> 16 & 0x8000, size = wide & 0x7fffffff;
        if (size > 0x7f800000) {
            bits = static_cast<uint16_t>(sign | 0x7e00);
        } else if (size >= 0x477ff000) {
            // Rounds to more than there is.
            bits = static_cast<uint16_t>(sign | 0x7c00);
        } else if (size < 0x38800000) {
            // Multiples of 2^-24, which is what adding this much to it leaves of it.
            float magnitude;
            memcpy(&magnitude, &size, sizeof magnitude);
            volatile float rounded = magnitude + 0.5f;
            magnitude = rounded;
            memcpy(&size, &magnitude, sizeof size);
            bits = static_cast<uint16_t>(sign | (size - 0x3f000000));
        } else {
            size += 0xfff + (size >> 13 & 1);
            bits = static_cast<uint16_t>(sign | (size - 0x38000000) >> 13);
        }
    }
    operator float() const {
        int exponent = bits >> 10 & 31, fraction = bits & 1023;
        float size = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                     : exponent == 31 ? (fraction ? NAN : INFINITY)
                                      : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
        return bits & 0x8000 ? -size : size;
    }
};

template <typename T> T argument(void **arguments, int index) {
    return *static_cast<T *>(arguments[index]);
}

// Where the elements of a tensor lie: dims, then strides; without them side by side.
struct Layout {
    size_t rank;
    const size_t *dims, *strides;

    size_t at(size_t index) const {
        if (!dims) return index;
        size_t place = 0;
        for (size_t d = rank; d-- > 0;) {
            place += index % dims[d] * strides[d];
            index /= dims[d];
        }
        return place;
    }
};

Layout layout(void **arguments, int rank, int which = 0) {
    size_t dims = argument<size_t>(arguments, rank);
    const size_t *info = argument<const size_t *>(arguments, rank + 1);
    return Layout{dims, info, info ? info + (1 + which) * dims : nullptr};
}

// Element-wise, in f32 for bf16.
template <typename T, T (*function)(T)> void unary(void **arguments) {
    Layout from = layout(arguments, 1);
    auto in = argument<const T *>(arguments, 3);
    auto out = argument<T *>(arguments, 4);
    for (size_t i = 0; i < argument<size_t>(arguments, 0); i++)
        out[i] = function(in ? in[from.at(i)] : out[i]);
}

template <typename T, typename Out, Out (*function)(T, T)> void binary(void **arguments) {
    Layout left = layout(arguments, 1), right = layout(arguments, 1, 1);
    auto a = argument<const T *>(arguments, 3), b = argument<const T *>(arguments, 4);
    auto out = argument<Out *>(arguments, 5);
    for (size_t i = 0; i < argument<size_t>(arguments, 0); i++)
        out[i] = function(a[left.at(i)], b[right.at(i)]);
}

template <typename From, typename To> void cast(void **arguments) {
    Layout from = layout(arguments, 1);
    auto in = argument<const From *>(arguments, 3);
    auto out = argument<To *>(arguments, 4);
    for (size_t i = 0; i < argument<size_t>(arguments, 0); i++)
        out[i] = static_cast<To>(in[from.at(i)]);
}

template <typename T> void affine(void **arguments) {
    Layout from = layout(arguments, 1);
    auto in = argument<const T *>(arguments, 3);
    auto out = argument<T *>(arguments, 4);
    T mul = argument<T>(arguments, 5), add = argument<T>(arguments, 6);
    for (size_t i = 0; i < argument<size_t>(arguments, 0); i++)
        out[i] = static_cast<T>((in ? in[from.at(i)] : out[i]) * mul + add);
}

template <typename T> void copy2d(void **arguments) {
    auto in = argument<const T *>(arguments, 0);
    auto out = argument<T *>(arguments, 1);
    uint32_t rows = argument<uint32_t>(arguments, 2), columns = argument<uint32_t>(arguments, 3);
    uint32_t from = argument<uint32_t>(arguments, 4), to = argument<uint32_t>(arguments, 5);
    for (size_t row = 0; row < rows; row++)
        memcpy(out + row * to, in + row * from, columns * sizeof(T));
}

template <typename T> void const_set(void **arguments) {
    Layout to = layout(arguments, 1);
    T value = argument<T>(arguments, 3);
    auto out = argument<T *>(arguments, 4);
    for (size_t i = 0; i < argument<size_t>(arguments, 0); i++) out[to.at(i)] = value;
}

template <typename T, typename I> void index_select(void **arguments) {
    size_t count = argument<size_t>(arguments, 0);
    // That of the ids: the source lies side by side.
    Layout of_ids = layout(arguments, 1);
    auto ids = argument<const I *>(arguments, 3);
    auto in = argument<const T *>(arguments, 4);
    auto out = argument<T *>(arguments, 5);
    size_t rows = argument<size_t>(arguments, 7), chosen = argument<size_t>(arguments, 8);
    size_t right = argument<size_t>(arguments, 9);
    for (size_t i = 0; i < count; i++) {
        size_t left = i / (chosen * right), id = ids[of_ids.at(i / right % chosen)];
        out[i] = in[(left * rows + id) * right + i % right];
    }
}

template <typename T, typename I> void gather(void **arguments) {
    auto ids = argument<const I *>(arguments, 1);
    auto in = argument<const T *>(arguments, 2);
    auto out = argument<T *>(arguments, 3);
    size_t rows = argument<size_t>(arguments, 5), chosen = argument<size_t>(arguments, 6);
    size_t right = argument<size_t>(arguments, 7);
    for (size_t i = 0; i < argument<size_t>(arguments, 0); i++) {
        size_t left = i / (right * chosen);
        out[i] = in[(left * rows + ids[i]) * right + i % right];
    }
}

template <typename T, typename I> void index_add(void **arguments) {
    auto ids = argument<const I *>(arguments, 0);
    size_t added = argument<size_t>(arguments, 1);
    auto in = argument<const T *>(arguments, 2);
    auto out = argument<T *>(arguments, 3);
    size_t left = argument<size_t>(arguments, 4), rows = argument<size_t>(arguments, 6);
    size_t right = argument<size_t>(arguments, 7);
    for (size_t l = 0; l < left; l++)
        for (size_t j = 0; j < added; j++)
            for (size_t r = 0; r < right; r++) {
                T &sum = out[(l * rows + ids[j]) * right + r];
                sum = static_cast<T>(sum + in[(l * added + j) * right + r]);
            }
}

template <typename T, typename I> void scatter_add(void **arguments) {
    auto ids = argument<const I *>(arguments, 0);
    auto in = argument<const T *>(arguments, 1);
    auto out = argument<T *>(arguments, 2);
    size_t left = argument<size_t>(arguments, 3), added = argument<size_t>(arguments, 4);
    size_t rows = argument<size_t>(arguments, 5), right = argument<size_t>(arguments, 6);
    for (size_t l = 0; l < left; l++)
        for (size_t j = 0; j < added; j++)
            for (size_t r = 0; r < right; r++) {
                size_t from = (l * added + j) * right + r;
                T &sum = out[(l * rows + ids[from]) * right + r];
                sum = static_cast<T>(sum + in[from]);
            }
}

template <typename T> void where(void **arguments) {
    Layout chosen = layout(arguments, 1), yes = layout(arguments, 1, 1), no = layout(arguments, 1, 2);
    auto ids = argument<const uint8_t *>(arguments, 3);
    auto t = argument<const T *>(arguments, 4), f = argument<const T *>(arguments, 5);
    auto out = argument<T *>(arguments, 6);
    for (size_t i = 0; i < argument<size_t>(arguments, 0); i++)
        out[i] = ids[chosen.at(i)] ? t[yes.at(i)] : f[no.at(i)];
}

// Over the last dimensions, so many elements to one. The first argument counts elements, or, of small
// sums, what they become.
template <typename T, typename Out, Out (*function)(const std::vector<T> &), bool SMALL = false>
void reduce(void **arguments) {
    size_t count = argument<size_t>(arguments, 0), of_one = argument<size_t>(arguments, 1);
    size_t outputs = SMALL ? count : count / of_one;
    Layout from = layout(arguments, 2);
    auto in = argument<const T *>(arguments, 4);
    auto out = argument<Out *>(arguments, 5);
    std::vector<T> part(of_one);
    for (size_t i = 0; i < outputs; i++) {
        for (size_t j = 0; j < of_one; j++) part[j] = in[from.at(i * of_one + j)];
        out[i] = function(part);
    }
}

template <typename T> T sum_of(const std::vector<T> &part) {
    double sum = 0;
    for (T value : part) sum += value;
    return static_cast<T>(sum);
}
template <typename T> uint32_t index_of_most(const std::vector<T> &part) {
    uint32_t most = 0;
    for (uint32_t i = 1; i < part.size(); i++)
        if (part[i] > part[most]) most = i;
    return most;
}
template <typename T> T most_of(const std::vector<T> &part) { return part[index_of_most(part)]; }

template <typename T> T same(T x) { return x; }
template <typename T> T negative(T x) { return static_cast<T>(-x); }
template <typename T> T exponential(T x) { return static_cast<T>(std::exp(x)); }
template <typename T> T logarithm(T x) { return static_cast<T>(std::log(x)); }
template <typename T> T square(T x) { return static_cast<T>(x * x); }
template <typename T> T root(T x) { return static_cast<T>(std::sqrt(x)); }
template <typename T> T magnitude(T x) { return static_cast<T>(std::fabs(x)); }
template <typename T> T hyperbolic(T x) { return static_cast<T>(std::tanh(x)); }
template <typename T> T inverse(T x) { return static_cast<T>(1 / x); }
template <typename T> T error_function(T x) { return static_cast<T>(std::erf(x)); }
template <typename T> T cosine(T x) { return static_cast<T>(std::cos(x)); }
template <typename T> T sine(T x) { return static_cast<T>(std::sin(x)); }

template <typename T> T plus(T a, T b) { return static_cast<T>(a + b); }
template <typename T> T minus(T a, T b) { return static_cast<T>(a - b); }
template <typename T> T times(T a, T b) { return static_cast<T>(a * b); }
template <typename T> T over(T a, T b) { return static_cast<T>(a / b); }
template <typename T> T larger(T a, T b) { return a > b ? a : b; }
template <typename T> T smaller(T a, T b) { return a < b ? a : b; }
template <typename T> uint8_t is_equal(T a, T b) { return a == b; }
template <typename T> uint8_t is_less(T a, T b) { return a < b; }
template <typename T> uint8_t is_more(T a, T b) { return a > b; }
template <typename T> uint8_t is_at_least(T a, T b) { return a >= b; }

using Table = std::map<std::string, CandleKernel>;

template <typename T> void add_any(Table &table, const std::string &type) {
    table["ucopy_" + type] = unary<T, same<T>>;
    table["copy2d_" + type] = copy2d<T>;
    table["const_set_" + type] = const_set<T>;
    table["affine_" + type] = affine<T>;
    table["badd_" + type] = binary<T, T, plus<T>>;
    table["bsub_" + type] = binary<T, T, minus<T>>;
    table["bmul_" + type] = binary<T, T, times<T>>;
    table["bdiv_" + type] = binary<T, T, over<T>>;
    table["bmaximum_" + type] = binary<T, T, larger<T>>;
    table["bminimum_" + type] = binary<T, T, smaller<T>>;
    table["eq_" + type] = binary<T, uint8_t, is_equal<T>>;
    table["lt_" + type] = binary<T, uint8_t, is_less<T>>;
    table["gt_" + type] = binary<T, uint8_t, is_more<T>>;
    table["ge_" + type] = binary<T, uint8_t, is_at_least<T>>;
    table["where_u8_" + type] = where<T>;
    table["is_u32_" + type] = index_select<T, uint32_t>;
    table["gather_u32_" + type] = gather<T, uint32_t>;
    table["ia_u32_" + type] = index_add<T, uint32_t>;
    table["sa_u32_" + type] = scatter_add<T, uint32_t>;
    table["fast_sum_" + type] = reduce<T, T, sum_of<T>>;
    table["fast_sum_small_" + type] = reduce<T, T, sum_of<T>, true>;
    table["fast_max_" + type] = reduce<T, T, most_of<T>>;
    table["fast_argmax_" + type] = reduce<T, uint32_t, index_of_most<T>>;
    table["cast_" + type + "_f32"] = cast<T, float>;
    table["cast_" + type + "_f64"] = cast<T, double>;
    table["cast_" + type + "_bf16"] = cast<T, bf16>;
    table["cast_" + type + "_u8"] = cast<T, uint8_t>;
    table["cast_" + type + "_u32"] = cast<T, uint32_t>;
}

template <typename T> void add_half(Table &table, const std::string &type) {
    table["cast_" + type + "_f16"] = cast<T, f16>;
    table["cast_f16_" + type] = cast<f16, T>;
}

template <typename T> void add_real(Table &table, const std::string &type) {
    add_any<T>(table, type);
    table["uneg_" + type] = unary<T, negative<T>>;
    table["uexp_" + type] = unary<T, exponential<T>>;
    table["ulog_" + type] = unary<T, logarithm<T>>;
    table["usqr_" + type] = unary<T, square<T>>;
    table["usqrt_" + type] = unary<T, root<T>>;
    table["uabs_" + type] = unary<T, magnitude<T>>;
    table["utanh_" + type] = unary<T, hyperbolic<T>>;
    table["urecip_" + type] = unary<T, inverse<T>>;
    table["uerf_" + type] = unary<T, error_function<T>>;
    table["ucos_" + type] = unary<T, cosine<T>>;
    table["usin_" + type] = unary<T, sine<T>>;
}

Table all() {
    Table table;
    add_real<float>(table, "f32");
    add_real<double>(table, "f64");
    add_real<bf16>(table, "bf16");
    add_any<uint8_t>(table, "u8");
    add_any<uint32_t>(table, "u32");
    add_any<int64_t>(table, "i64");
    add_half<float>(table, "f32");
    add_half<double>(table, "f64");
    add_half<bf16>(table, "bf16");
    return table;
}

} // namespace

CandleKernel candle_kernel(const char *name) {
    static const Table table = all();
    auto found = table.find(name);
    return found == table.end() ? nullptr : found->second;
}

size_t candle_arguments(const char *name) {
    static const std::map<std::string, size_t> by_family = {
        {"ucopy", 5}, {"uneg", 5}, {"uexp", 5}, {"utanh", 5}, {"urecip", 5}, {"usqr", 5}, {"usqrt", 5},
        {"cast", 5}, {"badd", 6}, {"bsub", 6}, {"bmul", 6}, {"bdiv", 6}, {"affine", 7}, {"copy2d", 6},
    };
    const std::string text = name;
    auto found = by_family.find(text.substr(0, text.find('_')));
    return found == by_family.end() ? 0 : found->second;
}
