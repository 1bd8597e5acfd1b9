// A function with a stack of its own, that can be left and entered again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#if defined(__x86_64__) && defined(__linux__)

// Keeps what a called function must keep on the stack, and goes on with another stack.
asm(R"(
.text
.type emulator_switch_stack, @function
emulator_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch_stack, . - emulator_switch_stack
)");
extern "C" void emulator_switch_stack(void** from, void* to) asm("emulator_switch_stack");

#else
#include <ucontext.h>
#endif

namespace emulator {

constexpr size_t STACK_BYTES = 64 << 10;

class Fiber {
  public:
    // The next `enter` calls `function`, which must not return.
    void begin(void (*function)());
    void enter();
    void leave();

  private:
    unsigned char* stack() {
        if (!stack_) {
            stack_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, STACK_BYTES)));
        }
        return stack_.get();
    }

    struct Free {
        void operator()(unsigned char* stack) const { std::free(stack); }
    };

    // Reused by every block for as long as there is the thread.
    std::unique_ptr<unsigned char, Free> stack_;
#if defined(__x86_64__) && defined(__linux__)
    void *inside_ = nullptr, *outside_ = nullptr;
#else
    ucontext_t inside_, outside_;
#endif
};

#if defined(__x86_64__) && defined(__linux__)

inline void Fiber::begin(void (*function)()) {
    // As if `function` were about to be called: six registers, then where to return to.
    auto top = reinterpret_cast<void**>(stack() + STACK_BYTES) - 2;
    *top = reinterpret_cast<void*>(function);
    inside_ = top - 6;
}

inline void Fiber::enter() { emulator_switch_stack(&outside_, inside_); }

inline void Fiber::leave() { emulator_switch_stack(&inside_, outside_); }

#else

inline void Fiber::begin(void (*function)()) {
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack();
    inside_.uc_stack.ss_size = STACK_BYTES;
    inside_.uc_link = nullptr;
    makecontext(&inside_, function, 0);
}

inline void Fiber::enter() { swapcontext(&outside_, &inside_); }

inline void Fiber::leave() { swapcontext(&inside_, &outside_); }

#endif

}  // namespace emulator
