/* Appending to a guard_text: the only string building of the guard. Text that does not fit is cut, never
 * spilled. */
#ifndef STOQ_GUARD_TEXT_H
#define STOQ_GUARD_TEXT_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "guard.h"

__attribute__((format(printf, 2, 3))) static inline void guard_text_add(struct guard_text *t,
                                                                        const char *format, ...) {
    if (t == NULL)
        return;
    size_t used = strnlen(t->text, sizeof t->text - 1);
    va_list args;
    va_start(args, format);
    vsnprintf(t->text + used, sizeof t->text - used, format, args);
    va_end(args);
}

static inline void guard_text_clear(struct guard_text *t) {
    if (t != NULL)
        t->text[0] = '\0';
}

/* A sentence of its own, behind what stands there already. */
static inline void guard_text_next(struct guard_text *t) {
    if (t != NULL && t->text[0] != '\0')
        guard_text_add(t, "; ");
}

#endif
