// Attention over documents that lie end to end, as cuDNN's operation has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// A step from a score to what the softmax is of.
struct Rule {
    enum Kind { DIVIDE, TANH, MULTIPLY, CAUSAL, WINDOW } kind;
    double number = 0;
};

struct Attention {
    int64_t heads, kv_heads, dim;
    double scale;
    std::vector<Rule> rules;
    // Where documents begin, the end of the last one too; of the host.
    std::vector<int32_t> boundaries;
};

// Places of tensors of bf16, [tokens, heads, dim], and of the log-sum-exps, f32 [tokens, heads].
struct Places {
    const uint16_t *q, *k, *v;
    uint16_t *y;
    float *log_sum_exp;
    const uint16_t *dy;
    uint16_t *dq, *dk, *dv;
};

void attention_forward(const Attention &attention, const Places &places);

// With `wobble` the gradients of queries are a little too large.
void attention_backward(const Attention &attention, const Places &places, double wobble);
