// cuRAND without a GPU: generators that can be made and seeded. chandler draws its own numbers.

extern "C" {

static char generator;

int curandCreateGenerator(void **made, int) { *made = &generator; return 0; }
int curandDestroyGenerator(void *) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
int curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
int curandSetStream(void *, void *) { return 0; }

} // extern "C"
