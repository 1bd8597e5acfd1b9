// The arithmetic: in double, rounded once.

#include "attention.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace {

double widen(uint16_t narrow) {
    uint32_t bits = static_cast<uint32_t>(narrow) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t narrow(double wide) {
    float value = static_cast<float>(wide);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 64);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A score, and how fast it grows with what it was before the rules.
struct Score {
    double value, slope;
};

Score ruled(const std::vector<Rule> &rules, double value, int64_t row, int64_t column) {
    Score score = {value, 1};
    for (const Rule &rule : rules) {
        bool is_seen = true;
        switch (rule.kind) {
        case Rule::DIVIDE: score = {score.value / rule.number, score.slope / rule.number}; break;
        case Rule::MULTIPLY: score = {score.value * rule.number, score.slope * rule.number}; break;
        case Rule::TANH: {
            double tanh = std::tanh(score.value);
            score = {tanh, score.slope * (1 - tanh * tanh)};
            break;
        }
        case Rule::CAUSAL: is_seen = row >= column; break;
        case Rule::WINDOW: is_seen = static_cast<double>(column) + rule.number > static_cast<double>(row); break;
        }
        if (!is_seen) return {-std::numeric_limits<double>::infinity(), 0};
    }
    return score;
}

// The row of a token's head among `heads`.
template <class T>
T *row_of(T *values, int64_t token, int64_t head, int64_t heads, int64_t width) {
    return values + (token * heads + head) * width;
}

double dot(const uint16_t *a, const uint16_t *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += widen(a[i]) * widen(b[i]);
    return sum;
}

// Calls `visit` with each query's first token of its document, its token, its head and its keys' head.
template <class Visit>
void each_query(const Attention &attention, Visit visit) {
    const int64_t group = attention.heads / attention.kv_heads;
    for (size_t d = 0; d + 1 < attention.boundaries.size(); d++) {
        for (int64_t token = attention.boundaries[d]; token < attention.boundaries[d + 1]; token++)
            for (int64_t head = 0; head < attention.heads; head++)
                visit(attention.boundaries[d], attention.boundaries[d + 1], token, head, head / group);
    }
}

} // namespace

void attention_forward(const Attention &a, const Places &p) {
    each_query(a, [&](int64_t start, int64_t end, int64_t token, int64_t head, int64_t kv_head) {
        const uint16_t *query = row_of(p.q, token, head, a.heads, a.dim);
        std::vector<double> scores;
        double most = -std::numeric_limits<double>::infinity();
        for (int64_t key = start; key < end; key++) {
            double product = dot(query, row_of(p.k, key, kv_head, a.kv_heads, a.dim), a.dim);
            scores.push_back(ruled(a.rules, product * a.scale, token - start, key - start).value);
            most = std::fmax(most, scores.back());
        }
        double sum = 0;
        std::vector<double> row(static_cast<size_t>(a.dim), 0.0);
        for (size_t i = 0; i < scores.size(); i++) {
            double weight = std::exp(scores[i] - most);
            if (weight == 0) continue;
            sum += weight;
            const uint16_t *value =
                row_of(p.v, start + static_cast<int64_t>(i), kv_head, a.kv_heads, a.dim);
            for (size_t c = 0; c < row.size(); c++) row[c] += weight * widen(value[c]);
        }
        uint16_t *y = row_of(p.y, token, head, a.heads, a.dim);
        for (size_t c = 0; c < row.size(); c++) y[c] = narrow(row[c] / sum);
        *row_of(p.log_sum_exp, token, head, a.heads, 1) = static_cast<float>(most + std::log(sum));
    });
}

void attention_backward(const Attention &a, const Places &p, double wobble) {
    if (a.boundaries.empty()) return;
    const int64_t first = a.boundaries.front(), tokens = a.boundaries.back() - first;
    const size_t width = static_cast<size_t>(tokens * a.kv_heads * a.dim);
    std::vector<double> dk(width, 0.0), dv(width, 0.0);
    each_query(a, [&](int64_t start, int64_t end, int64_t token, int64_t head, int64_t kv_head) {
        const uint16_t *query = row_of(p.q, token, head, a.heads, a.dim);
        const uint16_t *dy = row_of(p.dy, token, head, a.heads, a.dim);
        const double delta = dot(dy, row_of(p.y, token, head, a.heads, a.dim), a.dim);
        const double lse = *row_of(p.log_sum_exp, token, head, a.heads, 1);
        std::vector<double> dq(static_cast<size_t>(a.dim), 0.0);
        for (int64_t key = start; key < end; key++) {
            const uint16_t *k = row_of(p.k, key, kv_head, a.kv_heads, a.dim);
            const uint16_t *v = row_of(p.v, key, kv_head, a.kv_heads, a.dim);
            Score score = ruled(a.rules, dot(query, k, a.dim) * a.scale, token - start, key - start);
            double weight = std::exp(score.value - lse);
            if (weight == 0) continue;
            double slope = weight * (dot(dy, v, a.dim) - delta) * score.slope * a.scale;
            double *of_k = row_of(dk.data(), key - first, kv_head, a.kv_heads, a.dim);
            double *of_v = row_of(dv.data(), key - first, kv_head, a.kv_heads, a.dim);
            for (int64_t c = 0; c < a.dim; c++) {
                dq[static_cast<size_t>(c)] += slope * widen(k[c]);
                of_k[c] += slope * widen(query[c]);
                of_v[c] += weight * widen(dy[c]);
            }
        }
        uint16_t *row = row_of(p.dq, token, head, a.heads, a.dim);
        for (int64_t c = 0; c < a.dim; c++) row[c] = narrow(dq[static_cast<size_t>(c)] * (1 + wobble));
    });
    for (size_t i = 0; i < width; i++) {
        p.dk[static_cast<size_t>(first * a.kv_heads * a.dim) + i] = narrow(dk[i]);
        p.dv[static_cast<size_t>(first * a.kv_heads * a.dim) + i] = narrow(dv[i]);
    }
}
