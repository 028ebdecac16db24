// expect.h: counts what failed and says where.
#pragma once
#include <cstdio>

inline int failures = 0;

#define EXPECT(condition, ...)                                            \
  do {                                                                    \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);         \
      std::printf(" " __VA_ARGS__);                                       \
      std::printf("\n");                                                  \
    }                                                                     \
  } while (0)
